"use strict";
// Puts the newest page in place; what is open stays open, and the focus where it is.
setInterval(async () => {
  const here = document.getElementById("live");
  try {
    const answer = await fetch(location.pathname, {cache: "no-store"});
    const there = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    if (!there || there.dataset.stamp === here.dataset.stamp) return;
    for (const open of here.querySelectorAll("details[open]"))
      there.querySelector("#" + open.id)?.setAttribute("open", "");
    const stops = page => [...page.querySelectorAll("a, summary, iframe, [tabindex]")];
    const focus = stops(here).indexOf(document.activeElement);
    here.replaceWith(there);
    stops(there)[focus]?.focus({preventScroll: true});
  } catch {
    document.getElementById("pulse").textContent = "textenvs watch has ended";
  }
}, 2000);
