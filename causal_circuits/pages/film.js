// The graph while it forms (film.html.jinja). It starts at the first step and plays once when it is scrolled into
// view; where reduced motion is asked for it stays at the last step until somebody moves the slider.
for (const film of document.querySelectorAll(".graph-film:not([data-ready])")) {
  film.dataset.ready = "yes";
  const slider = film.querySelector("input");
  const told = film.querySelector("output");
  const button = film.querySelector("button");
  const arcs = [...film.querySelectorAll("path[data-weights]")];
  const weights = arcs.map((arc) => arc.dataset.weights.split(" ").map(Number));
  const steps = film.dataset.steps.split("|");
  const pictures = [...film.querySelectorAll("figure svg")].map((svg) => [...svg.querySelectorAll("image")]);
  const lines = [...film.querySelectorAll("path[data-x]")];
  let timer = null;

  const show = () => {
    arcs.forEach((arc, k) => (arc.style.opacity = weights[k][+slider.value]));
    for (const frames of pictures)
      frames.forEach((frame, k) => frame.setAttribute("display", k === +slider.value ? "inline" : "none"));
    for (const line of lines) line.setAttribute("transform", `translate(${line.dataset.x.split(" ")[+slider.value]})`);
    told.textContent = steps[+slider.value];
    slider.setAttribute("aria-valuetext", told.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const next = () => {
    if (+slider.value >= +slider.max) return stop();
    slider.value = +slider.value + 1;
    show();
  };
  const play = () => {
    if (+slider.value >= +slider.max) slider.value = 0;
    show();
    button.textContent = "Stop";
    timer = setInterval(next, 600);
  };

  const seen = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      play();
    },
    { threshold: 0.6 },
  );
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    slider.value = 0;
    show();
    seen.observe(film.querySelector(".figure"));
  }
  button.addEventListener("click", () => {
    seen.disconnect();
    if (timer) stop();
    else play();
  });
  slider.addEventListener("input", () => {
    seen.disconnect();
    stop();
    show();
  });
  addEventListener("beforeprint", () => {
    stop();
    slider.value = slider.max;
    show();
  });
  film.querySelector(".film-controls").hidden = false;
}
