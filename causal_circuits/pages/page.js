// What scrolls sideways must be reached by keyboard; what does not must not stop the Tab key.
const reach = () => {
  for (const box of document.querySelectorAll(".figure, .scroll, pre"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
};
addEventListener("load", reach);
addEventListener("resize", reach);
addEventListener("toggle", reach, true); // a table that has just been unfolded

// Folded tables are printed too.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});
