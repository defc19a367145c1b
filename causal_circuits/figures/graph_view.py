"""The graph to explore on a page: hover an edge for its numbers; without JavaScript each edge has a tooltip."""

from collections.abc import Mapping

import networkx as nx

from causal_circuits.arguments import check_arguments
from causal_circuits.display import format_value
from causal_circuits.figures.style import BLACK, MODEL, TRUE_EDGE
from causal_circuits.figures.svg_arcs import Frame
from causal_circuits.graphs import compare_graphs, has_query, latent_edges, n_ctx_of
from causal_circuits.pages.templates import PagePart, render

Facts = Mapping[str, object]
_LOOKS = {"found and true": (MODEL, ""), "missing": (TRUE_EDGE, "7 4"), "false": (BLACK, "9 3 2 3")}


@check_arguments
def interactive_graph(
    true: nx.DiGraph, found: nx.DiGraph, facts: Mapping[tuple[int, int], Facts] | None = None
) -> PagePart:
    """A found graph beside the true one, as HTML for the body of a `Section`, or for a notebook.

    Args:
        true, found: graphs over the same positions.
        facts: (parent, child) -> name -> value, told when an edge is hovered, focused or tapped: attention,
            information, effect, p-value.

    >>> html = interactive_graph(cc.chain_graph(4), cc.chain_graph(4), {(0, 1): {"attention": 0.98}})
    >>> 'aria-label="0 → 1, found and true: attention 0.98"' in html
    True
    """
    n_ctx, sizes = n_ctx_of(true), [n_ctx_of(true), n_ctx_of(found)]
    if len(set(sizes)) > 1:
        raise ValueError(f"graphs must cover the same positions to be drawn together: got {sizes}")
    recovery = compare_graphs(true, found)
    kinds = dict.fromkeys(sorted(latent_edges(true)), "found and true")
    kinds |= dict.fromkeys(recovery.missing, "missing") | dict.fromkeys(recovery.false, "false")
    for edge in facts or {}:
        if edge not in kinds:
            raise ValueError(f"facts must be of edges that are true or found: got some of {edge[0]} -> {edge[1]}")
    frame = Frame(true, latent_edges(true), recovery.false)
    counts = list(kinds.values())
    return PagePart(
        render(
            "graph_view.html.jinja",
            frame=frame,
            label=f"Graph over {n_ctx} positions with {len(kinds)} edges",
            given=frame.path(n_ctx - 1, n_ctx) if has_query(true) else None,
            edges=[_edge(frame, edge, kind, (facts or {}).get(edge, {})) for edge, kind in kinds.items()],
            looks=[
                {"kind": kind, "colour": colour, "dashes": dashes, "count": counts.count(kind)}
                for kind, (colour, dashes) in _LOOKS.items()
            ],
        )
    )


def _edge(frame: Frame, edge: tuple[int, int], kind: str, facts: Facts) -> dict[str, str]:
    told = "; ".join(f"{name} {format_value(value)}" for name, value in facts.items())
    colour, dashes = _LOOKS[kind]
    return {
        "name": f"{edge[0]}-{edge[1]}",
        "told": f"{edge[0]} → {edge[1]}, {kind}" + (f": {told}" if told else ""),
        "path": frame.path(*edge, below=kind == "false"),
        "colour": colour,
        "dashes": dashes,
    }
