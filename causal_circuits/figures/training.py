"""What happens while a model trains: the predictor it is nearest to, and edges that form and begin to matter."""

from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits import circuits
from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import (
    GREY,
    MODEL,
    SERIES,
    SKY,
    SMALL,
    TRUE_EDGE,
    legend_above,
    log_steps,
    look_of,
    new_axes,
    new_grid,
    to_numpy,
)
from causal_circuits.films import PredictorDistances


@check_arguments
def plot_phases(distances: PredictorDistances, ax: Axes | None = None) -> Axes:
    """KL from each named predictor to the model at every recorded step; bands name the nearest one, phase by phase.

    Args:
        distances: what a `PredictorRecorder` gives.

    >>> film = cc.films.PredictorRecorder(batch, cc.films.named_predictors(task, batch))
    >>> config = cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(cc.disentangled_transformer(3, 6), task, config, on_record=film)
    >>> len(cc.figures.plot_phases(film.result()).lines) >= 3  # one a predictor
    True
    """
    ax = new_axes(ax, 5.6, 4.2)
    steps, divergence = np.array(distances.steps) + 1, to_numpy(distances.divergence)
    for k, name in enumerate(distances.names):
        ax.plot(steps, divergence[:, k], markersize=4.5, linewidth=1.5, label=name, **look_of(k))
    edges = [steps[0], *np.sqrt(steps[:-1] * steps[1:]), steps[-1]]  # bands meet half way on the logarithmic axis
    for name, places in groupby(range(len(steps)), key=lambda at: distances.nearest[at]):
        held = list(places)
        colour = SERIES[distances.names.index(name) % len(SERIES)]
        ax.axvspan(edges[held[0]], edges[held[-1] + 1], color=colour, alpha=0.12, linewidth=0)
        if held[0] > 0:
            ax.axvline(edges[held[0]], color=GREY, linewidth=0.8)
    log_steps(ax, "training step + 1 (log scale)")
    ax.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    ax.set_ylim(bottom=0)
    ax.set_ylabel("KL(predictor, model) (nats)")
    legend_above(ax, ncols=4, title="distance from the predictor named; the shade says which is nearest")
    return ax


@check_arguments
def plot_formation(formation: circuits.CircuitFormation) -> Figure:
    """Attention on each edge of the latent graph and the effect of cutting it, at every recorded step; means thick.

    Args:
        formation: from `watch_formation`.

    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> when = cc.RecordAt(steps=(0, 4))
    >>> formation = cc.circuits.watch_formation(model, task, config, record=when, batch=batch)
    >>> len(cc.figures.plot_formation(formation).axes)
    3
    """
    figure, panels = new_grid(3, 3, 4.2, 3.8)
    measured = {
        "mean attention on the edge": (formation.attention, formation.attention_onset),
        "its share of its row's effects": (formation.share, formation.causal_onset),
        "effect of cutting it (KL, nats)": (formation.effect, None),
    }
    for ax, (label, (curves, onsets)) in zip(panels, measured.items(), strict=True):
        steps, values = np.array(formation.steps) + 1, to_numpy(curves)
        for k, edge in enumerate(values.T):
            ax.plot(steps, edge, color=SKY, linewidth=0.8, label=None if k else "one edge")
        ax.plot(steps, values.mean(axis=1), color=MODEL, linewidth=2.4, label="mean over edges")
        times = np.array([]) if onsets is None else to_numpy(onsets)
        for k, at in enumerate(times[np.isfinite(times)]):
            label_once = None if k else "onset of an edge"
            ax.axvline(at + 1, color=TRUE_EDGE, linewidth=0.7, linestyle=":", label=label_once)
        log_steps(ax, "training step + 1 (log scale)")
        ax.set_ylabel(label)
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=SMALL)
    return figure
