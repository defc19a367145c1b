// Attention views (attention_view.html.jinja): CircuitsVis draws each panel; a slider goes through training.

// CircuitsVis keeps its chart to itself; React's node of the canvas leads to it, as soon as it is there.
const chartOf = (canvas) => {
  const node = Object.keys(canvas).find((name) => name.startsWith("__reactFiber"));
  for (let hook = canvas[node]?.return?.memoizedState; hook; hook = hook.next)
    if (hook.memoizedState?.current?.chartArea) return hook.memoizedState.current;
};

// Squares around entries, whenever the chart draws itself.
const outline = (place, n, cells, tries = 100) => {
  const canvas = place.querySelector("canvas");
  const chart = canvas && chartOf(canvas);
  if (!chart) return tries && requestAnimationFrame(() => outline(place, n, cells, tries - 1));
  const draw = chart.draw.bind(chart);
  chart.draw = () => {
    draw();
    const { left, top, width, height } = chart.chartArea;
    chart.ctx.strokeStyle = "#D55E00";
    chart.ctx.lineWidth = 1.5;
    for (const [query, key] of cells)
      chart.ctx.strokeRect(left + (key * width) / n, top + (query * height) / n, width / n, height / n);
  };
  chart.draw();
};

// CircuitsVis's selector of heads, made reachable by keyboard and for screen readers.
const nameHeads = (place) => {
  for (const name of place.querySelectorAll("h4")) {
    const button = name.parentElement.parentElement;
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", `Attention of ${name.textContent}`);
    button.tabIndex = 0;
    button.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      button.click();
    };
  }
  for (const picture of place.querySelectorAll("canvas")) {
    const panel = picture.closest("figure").querySelector("figcaption").textContent;
    const label = picture.closest("[role=button]")?.getAttribute("aria-label") ?? `Attention of ${panel}`;
    picture.setAttribute("aria-label", label);
  }
};

for (const view of document.querySelectorAll(".attention-view:not([data-ready])")) {
  view.dataset.ready = "yes";
  const { panels, frames, steps } = JSON.parse(view.querySelector("script").textContent);
  const places = [...view.querySelectorAll(".pattern")];
  const chosen = places.map(() => 0);

  // CircuitsVis keeps no handle on what it has rendered: a new state is rendered into a new element.
  const draw = (k, state) => {
    const place = places[k].cloneNode(false);
    place.id = `circuits-vis-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    place.style.minHeight = `${places[k].offsetHeight}px`;
    places[k].replaceWith(place);
    places[k] = place;
    const heads = () => [...place.querySelectorAll("[role=button]")];
    place.addEventListener("click", (event) => {
      const at = heads().findIndex((head) => head.contains(event.target));
      if (at >= 0) chosen[k] = at;
    });
    const rendered = new MutationObserver(() => {
      const isFirst = !heads().length;
      nameHeads(place);
      if (isFirst && chosen[k]) heads()[chosen[k]]?.click();
    });
    rendered.observe(place, { childList: true, subtree: true });
    const { component, properties, outlined } = panels[k];
    const attention = frames.length ? frames[state][k] : properties.attention;
    CircuitsVis.render(place.id, CircuitsVis[component], { ...properties, attention });
    if (outlined.length) outline(place, properties.tokens.length, outlined);
  };
  places.forEach((_, k) => draw(k, frames.length - 1));

  const slider = view.querySelector("input");
  slider?.addEventListener("input", () => {
    const told = view.querySelector("output");
    told.textContent = steps[+slider.value];
    slider.setAttribute("aria-valuetext", told.textContent);
    places.forEach((_, k) => draw(k, +slider.value));
  });
  for (const controls of view.querySelectorAll(".attention-steps")) controls.hidden = false;
}
