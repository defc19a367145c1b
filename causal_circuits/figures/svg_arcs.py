"""Arcs over positions as SVG text, for the parts of a page that move: one geometry for the graph and for its film."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import networkx as nx

from causal_circuits.figures.arcs import arc_height
from causal_circuits.graphs import has_query, n_ctx_of

STEP = 30.0  # pixels from one position to the next
_MARGIN = 24.0
_LABEL_EVERY = 5  # position numbers, where there are more than thirty


@dataclass(frozen=True)
class Frame:
    """Where things are in a drawing of arcs above and below a line of positions.

    Attributes:
        n_ctx: the number of positions; the target stands behind them.
        unit: pixels of height for each unit of `arc_height`.
        above, below: the height of the highest arc on either side, pixels.
    """

    n_ctx: int
    unit: float
    above: float
    below: float

    @classmethod
    def around(cls, n_ctx: int, above: Iterable[tuple[int, int]], below: Iterable[tuple[int, int]]) -> "Frame":
        """Large enough for the edges above and below the line, and no arc higher than it is wide."""
        tops = [max([1.0, *(arc_height(*edge) for edge in edges)]) for edges in (above, list(below))]
        unit = min(200.0 / max(tops), STEP)
        return cls(n_ctx, unit, unit * tops[0], unit * tops[1])

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, pixels."""
        return 2 * _MARGIN + STEP * self.n_ctx, self.above + max(self.below, 34.0) + 2 * _MARGIN

    @property
    def line(self) -> float:
        """The height at which the positions stand, pixels from the top."""
        return self.above + _MARGIN

    def path(self, parent: int, child: int, *, below: bool = False) -> str:
        """Half an ellipse from parent to child, as the text of an SVG path."""
        x0, x1 = _MARGIN + STEP * parent, _MARGIN + STEP * child
        radii = f"{(x1 - x0) / 2:.1f} {self.unit * arc_height(parent, child):.1f}"
        return f"M{x0:.1f} {self.line:.1f}A{radii} 0 0 {0 if below else 1} {x1:.1f} {self.line:.1f}"

    def svg(self, inside: str, graph: nx.DiGraph, label: str, attributes: str = 'role="img"') -> str:
        """The drawing: a dot and a number, or label, for each position; `query` and `target` named; the arcs inside."""
        width, height = self.size
        style = f"width:{width:.0f}px;max-width:100%;min-width:min({width:.0f}px,30rem);height:auto"
        return (
            f'<svg viewBox="0 0 {width:.0f} {height:.0f}" {attributes} aria-label="{escape(label)}" style="{style}">\n'
            f"{inside}\n{self._positions(graph)}</svg>"
        )

    def _positions(self, graph: nx.DiGraph) -> str:
        special = {self.n_ctx: "target"} | ({self.n_ctx - 1: "query"} if has_query(graph) else {})
        every = 1 if self.n_ctx <= 30 else _LABEL_EVERY
        marks = []
        for position in range(self.n_ctx + 1):
            x, name = _MARGIN + STEP * position, special.get(position)
            label = name or escape(str(graph.nodes[position].get("label", position)))
            look = 'fill="#fff" stroke="#000"' if name else 'fill="#000"'
            marks.append(f'<circle cx="{x:.1f}" cy="{self.line:.1f}" r="4" {look}/>')
            if name or position % every == 0:
                turned = f' transform="rotate(-35 {x:.1f} {self.line + 18:.1f})"' if name else ""
                anchor = "end" if name else "middle"
                place = f'x="{x:.1f}" y="{self.line + 18:.1f}" text-anchor="{anchor}"{turned}'
                marks.append(f"<text {place}>{label}</text>")
        return f'<g class="positions" aria-hidden="true">{"".join(marks)}</g>\n'


def check_positions(*graphs: nx.DiGraph) -> None:
    """Raise a ValueError unless all graphs cover the same positions."""
    sizes = [n_ctx_of(graph) for graph in graphs]
    if len(set(sizes)) > 1:
        raise ValueError(f"graphs must cover the same positions to be drawn together: got {sizes}")
