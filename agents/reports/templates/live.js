"use strict";
// Puts the newest page in place, and leaves open what is open, and the focus where it is.
setInterval(async () => {
  const here = document.getElementById("live");
  try {
    const answer = await fetch(location.pathname, {cache: "no-store"});
    const there = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    if (there.innerHTML === here.dataset.shown) return;
    const first = here.dataset.shown === undefined;
    here.dataset.shown = there.innerHTML;
    if (first) return;
    for (const open of here.querySelectorAll("details[open]"))
      there.querySelector("#" + open.id)?.setAttribute("open", "");
    const focus = document.activeElement.closest("[id]")?.id;
    here.replaceChildren(...there.childNodes);
    if (focus) document.getElementById(focus)?.focus({preventScroll: true});
  } catch {
    document.getElementById("pulse").textContent = "textenvs watch has ended";
  }
}, 2000);
