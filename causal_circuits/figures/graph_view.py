"""The graph to explore on a page: hover an edge for its numbers, choose a head for its attention.

Everything is there without JavaScript too: each edge has a tooltip, and all heads are shown one below the other.
"""

import itertools
from collections.abc import Mapping
from html import escape

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits.arguments import check_arguments
from causal_circuits.display import format_value
from causal_circuits.figures.page_parts import PagePart
from causal_circuits.figures.rendering import figure_html
from causal_circuits.figures.style import BLACK, GREY, MODEL, TRUE_EDGE
from causal_circuits.figures.svg_arcs import Frame, check_positions
from causal_circuits.graphs import compare_graphs, has_query, latent_edges, n_ctx_of

Facts = Mapping[str, object]
_NUMBERS = itertools.count(1)
_LOOKS = {
    "found and true": (MODEL, ""),
    "missing": (TRUE_EDGE, "7 4"),
    "false": (BLACK, "9 3 2 3"),
}
_EXPLORE = """
for (const view of document.querySelectorAll(".graph-view:not([data-ready])")) {
  view.dataset.ready = "yes";
  const told = view.querySelector("output"), edges = [...view.querySelectorAll(".edge")];
  for (const edge of edges) {
    const tell = () => {
      told.textContent = edge.getAttribute("aria-label");
      for (const other of edges) other.classList.toggle("chosen", other === edge);
    };
    for (const event of ["pointerenter", "focus", "click"]) edge.addEventListener(event, tell);
  }
  const buttons = [...view.querySelectorAll("button")], panels = [...view.querySelectorAll(".head-panel")];
  const choose = (at) => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", k === at));
    panels.forEach((panel, k) => { panel.hidden = k !== at; });
  };
  buttons.forEach((button, k) => button.addEventListener("click", () => choose(k)));
  for (const row of view.querySelectorAll(".head-buttons")) row.hidden = false;
  if (buttons.length) choose(0);
}"""


@check_arguments
def interactive_graph(
    true: nx.DiGraph,
    found: nx.DiGraph,
    facts: Mapping[tuple[int, int], Facts] | None = None,
    heads: Mapping[str, Axes | Figure] | None = None,
) -> PagePart:
    """A found graph beside the true one, as HTML for the body of a `Section`, or for a notebook.

    Args:
        true, found: graphs over the same positions.
        facts: (parent, child) -> name -> value, told when an edge is hovered, focused or tapped: attention,
            information, effect, p-value.
        heads: name -> its attention, as a figure; a button each.

    >>> from causal_circuits import chain_graph
    >>> html = interactive_graph(chain_graph(4), chain_graph(4), {(0, 1): {"attention": 0.98}})
    >>> 'aria-label="0 → 1, found and true: attention 0.98"' in html
    True
    """
    check_positions(true, found)
    name, recovery = f"graph-view-{next(_NUMBERS)}", compare_graphs(true, found)
    kinds = dict.fromkeys(sorted(latent_edges(true)), "found and true")
    kinds |= dict.fromkeys(recovery.missing, "missing") | dict.fromkeys(recovery.false, "false")
    for edge in facts or {}:
        if edge not in kinds:
            raise ValueError(f"facts must be of edges that are true or found: got some of {edge[0]} -> {edge[1]}")
    frame = Frame.around(n_ctx_of(true), latent_edges(true), recovery.false)
    drawn = [_edge_svg(frame, edge, kind, (facts or {}).get(edge, {})) for edge, kind in kinds.items()]
    if has_query(true):
        path = frame.path(n_ctx_of(true) - 1, n_ctx_of(true))
        drawn.insert(0, f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="0.8"/>')
    label = f"Graph over {n_ctx_of(true)} positions with {len(kinds)} edges"
    svg = frame.svg("\n".join(drawn), true, label, 'role="group"')
    html = (
        f'<div class="graph-view" id="{name}">\n<div class="figure">{svg}</div>\n{_legend(list(kinds.values()))}'
        '<p class="told"><output aria-live="polite">Hover an edge, tap it, or reach it with the Tab key: its numbers '
        f"stand here.</output></p>\n{_heads_html(heads or {})}</div>\n"
    )
    return PagePart(html, explore_script())


def explore_script() -> str:
    """The script that makes every `interactive_graph` of a page answer; `write_report` adds it once."""
    return _EXPLORE.strip()


def _edge_svg(frame: Frame, edge: tuple[int, int], kind: str, facts: Facts) -> str:
    """One arc with a wide invisible line around it to point at, its numbers as label and tooltip."""
    told = "; ".join(f"{name} {format_value(value)}" for name, value in facts.items())
    label = escape(f"{edge[0]} → {edge[1]}, {kind}" + (f": {told}" if told else ""))
    colour, dashes = _LOOKS[kind]
    path = frame.path(*edge, below=kind == "false")
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<g class="edge" tabindex="0" role="button" aria-label="{label}" data-edge="{edge[0]}-{edge[1]}">'
        f'<title>{label}</title><path class="line" d="{path}" stroke="{colour}"{dashed}/>'
        f'<path class="around" d="{path}"/></g>'
    )


def _legend(kinds: list[str]) -> str:
    items = []
    for kind, (colour, dashes) in _LOOKS.items():
        line = f'<line x1="0" y1="6" x2="34" y2="6" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        picture = f'<svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true">{line}</svg>'
        items.append(f"<span>{picture} {kind} ({kinds.count(kind)})</span>")
    return f'<p class="legend">{"".join(items)}</p>\n'


def _heads_html(heads: Mapping[str, Axes | Figure]) -> str:
    if not heads:
        return ""
    buttons = "".join(f'<button type="button">{escape(name)}</button>' for name in heads)
    panels = "\n".join(
        f'<div class="head-panel">{figure_html(figure, alt=f"Attention of {name}")}</div>'
        for name, figure in heads.items()
    )
    group = f'<div class="head-buttons" role="group" aria-label="Head whose attention to show" hidden>{buttons}</div>'
    return f"{group}\n{panels}\n"
