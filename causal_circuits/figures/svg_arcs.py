"""Arcs over positions as SVG, for the parts of a page that move: one geometry for the graph and for its film."""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from causal_circuits.figures.arcs import arc_height
from causal_circuits.graphs import has_query, n_ctx_of
from causal_circuits.graphs.edges import roots_of

MARGIN = 24.0  # pixels around a drawing


@dataclass(frozen=True)
class Mark:
    """A position: where it stands, what it is ("position", "root", "query", "target"), and its number or label."""

    x: float
    kind: str
    label: str


class Frame:
    """Where things are in a drawing of arcs above and below a line; no arc is higher than it is wide."""

    def __init__(self, graph: nx.DiGraph, above: Iterable[tuple[int, int]], below: Iterable[tuple[int, int]]) -> None:
        tops = [max([1.0, *(arc_height(*edge) for edge in edges)]) for edges in (above, below)]
        n_ctx, roots = n_ctx_of(graph), roots_of(graph)
        self._step = min(60.0, max(30.0, 720.0 / n_ctx))  # pixels from one position to the next
        self._unit = min(200.0 / max(tops), self._step)
        self.line = round(self._unit * tops[0] + MARGIN, 1)
        self.size = (2 * MARGIN + self._step * n_ctx, self.line + max(self._unit * tops[1], 34.0) + MARGIN)
        kinds = dict.fromkeys(range(n_ctx), "position") | dict.fromkeys(roots, "root") | {n_ctx: "target"}
        if has_query(graph):
            kinds[n_ctx - 1] = "query"
        every = 1 if n_ctx <= 30 else 5
        self.marks = [
            Mark(MARGIN + self._step * at, kind, "" if at % every else str(graph.nodes[at].get("label", at)))
            for at, kind in kinds.items()
        ]
        self.n_roots = len(roots)

    def path(self, parent: int, child: int, *, below: bool = False) -> str:
        """Half an ellipse from parent to child, as the text of an SVG path."""
        x0, x1 = MARGIN + self._step * parent, MARGIN + self._step * child
        radii = f"{(x1 - x0) / 2:.1f} {self._unit * arc_height(parent, child):.1f}"
        return f"M{x0:.1f} {self.line:.1f}A{radii} 0 0 {0 if below else 1} {x1:.1f} {self.line:.1f}"
