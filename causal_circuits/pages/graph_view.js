// The graph to explore (graph_view.html.jinja): an edge tells its numbers, a button shows its head's attention.
for (const view of document.querySelectorAll(".graph-view:not([data-ready])")) {
  view.dataset.ready = "yes";
  const told = view.querySelector("output");
  const edges = [...view.querySelectorAll(".edge")];
  for (const edge of edges) {
    const tell = () => {
      told.textContent = edge.getAttribute("aria-label");
      for (const other of edges) other.classList.toggle("chosen", other === edge);
    };
    for (const event of ["pointerenter", "focus", "click"]) edge.addEventListener(event, tell);
  }
  const buttons = [...view.querySelectorAll("button")];
  const panels = [...view.querySelectorAll(".head-panel")];
  const choose = (chosen) => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", k === chosen));
    panels.forEach((panel, k) => (panel.hidden = k !== chosen));
  };
  buttons.forEach((button, k) => button.addEventListener("click", () => choose(k)));
  for (const row of view.querySelectorAll(".head-buttons")) row.hidden = false;
  if (buttons.length) choose(0);
}
