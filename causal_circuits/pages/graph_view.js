// The graph to explore (graph_view.html.jinja): an edge tells its numbers.
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
}
