"use strict";
// The view of tokens is a page of its own, which is made when it is first opened.
document.addEventListener("toggle", ({target}) => {
  for (const frame of target.open ? target.querySelectorAll("iframe:not([srcdoc])") : []) frame.srcdoc = frame.dataset.page;
}, true);
