"""The graph while it forms: arcs as strong as the attention on them, one picture for each recorded step.

`plot_graph_forming` draws one state, `graph_film_html` all of them as a part of a page with a slider. Attention is the
largest over the heads of a layer, or one head's.
"""

import itertools
from dataclasses import dataclass

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.arcs import arc_points, draw_nodes, frame_arcs
from causal_circuits.figures.page_parts import PagePart
from causal_circuits.figures.style import BLACK, MODEL, SMALL, TRUE_EDGE, new_axes, to_numpy
from causal_circuits.figures.svg_arcs import Frame
from causal_circuits.graphs import attention_cells, has_query, latent_edges, n_ctx_of
from causal_circuits.recording import TrainingRecord

FAINTEST = 0.05  # attention below this is not drawn
_NUMBERS = itertools.count(1)
_PLAY = """
for (const film of document.querySelectorAll(".graph-film:not([data-ready])")) {
  film.dataset.ready = "yes";
  const slider = film.querySelector("input"), told = film.querySelector("output");
  const button = film.querySelector("button"), arcs = [...film.querySelectorAll("path[data-weights]")];
  const weights = arcs.map((arc) => arc.dataset.weights.split(" ").map(Number));
  const steps = film.dataset.steps.split("|");
  let timer = null;
  const show = () => {
    arcs.forEach((arc, k) => { arc.style.opacity = weights[k][+slider.value]; });
    slider.setAttribute("aria-valuetext", told.textContent = steps[+slider.value]);
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const next = () => {
    if (+slider.value >= +slider.max) return stop();
    slider.value = +slider.value + 1;
    show();
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (+slider.value >= +slider.max) slider.value = 0;
    show();
    button.textContent = "Stop";
    timer = setInterval(next, 600);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  film.querySelector(".film-controls").hidden = false;
}"""


@dataclass(frozen=True, eq=False)
class ArcsInTime:
    """One layer's attention as edges, at every recorded step.

    Attributes:
        steps: recorded.
        weights: (parent, child) -> attention at each step; edges that are never as strong as `FAINTEST` are left out,
            true ones never.
        true: the true edges.
    """

    steps: tuple[int, ...]
    weights: dict[tuple[int, int], np.ndarray]
    true: set[tuple[int, int]]

    def learned(self, state: int) -> int:
        """True edges with more than half the attention."""
        return sum(bool(self.weights[edge][state] > 0.5) for edge in self.true)

    def told(self, state: int) -> str:
        """A state in words."""
        return f"step {self.steps[state]:,}: {self.learned(state)} of {len(self.true)} edges above one half"


def arcs_in_time(record: TrainingRecord, graph: nx.DiGraph, layer: int = 0, head: int | None = None) -> ArcsInTime:
    """The attention of a record as edges over positions; diagonal entries and the query's row are no edges."""
    chosen = record.of_layer("attention", layer)
    n_heads, n_ctx = chosen.shape[1:3]
    if not (head is None or 0 <= head < n_heads):
        raise ValueError(f"the record has heads 0 .. {n_heads - 1}: got L{layer}H{head}")
    if n_ctx != n_ctx_of(graph):
        raise ValueError(f"record and graph must cover the same positions: {n_ctx} against {n_ctx_of(graph)}")
    values = to_numpy(chosen.amax(dim=1) if head is None else chosen[:, head])
    is_true = set(attention_cells(graph))
    query, weights = has_query(graph), {}
    for row in range(n_ctx - query):
        is_target = row == n_ctx - 1  # without a query, the last row stands for the target
        for key in range(row + is_target):
            if (row, key) in is_true or values[:, row, key].max() >= FAINTEST:
                weights[key, n_ctx if is_target else row] = values[:, row, key]
    true = {(key, n_ctx if row == n_ctx - 1 else row) for row, key in is_true}
    return ArcsInTime(record.steps, weights, true)


@check_arguments
def plot_graph_forming(
    record: TrainingRecord,
    graph: nx.DiGraph,
    state: int = -1,
    layer: int = 0,
    head: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The attention at one recorded step as arcs, as dark as they are strong: true edges above the line, others below.

    Args:
        record: of a run that recorded attention.
        graph: the true graph.
        state: which of the recorded states; -1 is the last.
        layer, head: whose attention; None takes the largest over the layer's heads.

    >>> import causal_circuits as cc
    >>> from causal_circuits import figures
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> ax = figures.plot_graph_forming(record, task.graph, state=0)
    >>> "0" in ax.get_title()
    True
    """
    if not -len(record.steps) <= state < len(record.steps):
        raise ValueError(f"state must be one of the {len(record.steps)} recorded ones, from 0: got {state}")
    arcs, n_ctx = arcs_in_time(record, graph, layer, head), n_ctx_of(graph)
    ax = new_axes(ax, float(np.clip(0.3 * n_ctx + 2, 6.0, 11.0)), 3.8)
    others = set(arcs.weights) - arcs.true
    for edges, side, colour in ((arcs.true, 1, MODEL), (others, -1, BLACK)):
        drawn = sorted(edges)
        strength = [float(np.clip(arcs.weights[edge][state], 0, 1)) for edge in drawn]
        lines = LineCollection(
            [arc_points(*edge, side) for edge in drawn], colors=colour, linewidths=1.8, alpha=strength
        )
        lines.set_gid("true" if side > 0 else "other")
        ax.add_collection(lines, autolim=False)
    outline = [arc_points(*edge, 1) for edge in sorted(arcs.true)]
    ax.add_collection(LineCollection(outline, colors=TRUE_EDGE, linewidths=0.5, linestyles=":"), autolim=False)
    draw_nodes(ax, graph)
    frame_arcs(ax, graph, arcs.true, others)
    ax.set_title(arcs.told(state), fontsize=10, pad=22)
    handles = [
        Line2D([], [], color=MODEL, linewidth=1.8, label="attention on a true edge"),
        Line2D([], [], color=TRUE_EDGE, linewidth=0.9, linestyle=":", label="the true graph"),
        Line2D([], [], color=BLACK, linewidth=1.8, label="attention elsewhere"),
    ]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=SMALL)
    return ax


@check_arguments
def graph_film_html(record: TrainingRecord, graph: nx.DiGraph, layer: int = 0, head: int | None = None) -> PagePart:
    """All recorded steps as a part of a page: a slider goes through them; without JavaScript the last one shows.

    Args:
        record, graph, layer, head: as in `plot_graph_forming`.

    >>> import causal_circuits as cc
    >>> from causal_circuits import figures
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> 'type="range"' in str(figures.graph_film_html(record, task.graph))
    True
    """
    arcs, name = arcs_in_time(record, graph, layer, head), f"graph-film-{next(_NUMBERS)}"
    others = set(arcs.weights) - arcs.true
    frame, last = Frame.around(n_ctx_of(graph), latent_edges(graph), others), len(arcs.steps) - 1
    drawn = [_arc_svg(frame, edge, arcs) for edge in sorted(arcs.weights)]
    told = [arcs.told(state) for state in range(last + 1)]
    label = f"Attention over positions; {told[-1]}"
    html = (
        f'<div class="graph-film" id="{name}" data-steps="{"|".join(told)}">\n'
        f'<div class="figure">{frame.svg("".join(drawn), graph, label)}</div>\n'
        f'<div class="film-controls" hidden><button type="button">Play</button>'
        f'<label for="{name}-step">Recorded step</label>'
        f'<input type="range" id="{name}-step" min="0" max="{last}" value="{last}" aria-valuetext="{told[-1]}"></div>'
        f'<p class="told"><output>{told[-1]}</output></p></div>\n'
    )
    return PagePart(html, play_script())


def play_script() -> str:
    """The script that makes every `graph_film_html` of a page move; `write_report` adds it once."""
    return _PLAY.strip()


def _arc_svg(frame: Frame, edge: tuple[int, int], arcs: ArcsInTime) -> str:
    is_true, weights = edge in arcs.true, arcs.weights[edge]
    path = frame.path(*edge, below=not is_true)
    outline = f'<path d="{path}" stroke="{TRUE_EDGE}" stroke-width="0.8" stroke-dasharray="2 3" fill="none"/>'
    strengths = " ".join(f"{weight:.3f}" for weight in weights)
    return (
        f'{outline if is_true else ""}<path d="{path}" stroke="{MODEL if is_true else BLACK}" stroke-width="2.2" '
        f'fill="none" data-weights="{strengths}" style="opacity:{weights[-1]:.3f}"/>'
    )
