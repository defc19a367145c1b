"""A map of what is learned: by the first gradient, by attention, by the loss, over graph, sizes, alpha and seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.figures.style import legend_below, look_of
from causal_circuits.pages import Check, Section
from causal_circuits.statistics import rank_correlation
from causal_circuits.studies.power_laws import Exponent, falls, fit_exponents
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import GRAPHS, curves_of, is_share, make_graph, parents_first

Row = dict[str, Any]
FAMILIES = (*GRAPHS, "star")
FULL = {"d_vocab": (2, 3, 5, 10, 20), "n_ctx": (8, 12, 20, 32, 50), "alpha": (0.03, 0.1, 0.3, 1.0, 3.0), "seeds": 40}
SEQUENCES = 4096  # for the gradient, and, others, for the loss
RECORDS = 60  # of attention, at steps in geometric progression
WINDOW = 50  # steps over which the training loss is averaged
REACHED = 0.9  # share of edges that are there, and of the gain over the best unigram


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Where a transformer learns the graph, where it reaches the loss without it, and in how many steps.

    Models are trained from zero by the default recipe. An edge is there when layer 0's attention to the parent is at
    least half-way from uniform to 1, from some step on to the end; the graph is there with 90% of its edges. The loss
    is there when its mean over 50 steps has 90% of the gain of the edge posterior over the best unigram. The gradient
    finds an edge when the parent is the largest entry of its row, at the start, from 4,096 sequences. g is the limit
    of that gradient in long contexts (`predicted_gradient`), its mean over the edges.

        python analyses/learnability.py --processes 2               # 324 settings
        python analyses/learnability.py --full --ray auto           # 20,000, on a cluster (docs/CLUSTER.md)
    """

    QUICK: ClassVar = {"graph": ("chain", "star"), "d_vocab": (3,), "n_ctx": (6, 10), "seeds": 1, "steps": 1200}

    graph: tuple[str, ...] = FAMILIES  #: any of chain, pairs, forest, star; a forest is another one with each seed
    d_vocab: tuple[int, ...] = (2, 3, 10)  #: numbers of tokens
    n_ctx: tuple[int, ...] = (8, 16, 32)  #: context lengths
    alpha: tuple[float, ...] = (0.1, 0.3, 1.0)  #: Dirichlet concentrations
    seeds: int = 3  #: runs of each setting
    steps: int = 4500  #: of the default recipe, two thirds of them by SGD
    batch_size: int = 256  #: sequences a step
    full: bool = False  #: 20,000 settings: larger defaults of d_vocab, n_ctx, alpha and seeds, whatever these flags say

    def __post_init__(self) -> None:
        """--full takes its axes."""
        for name, values in FULL.items() if self.full else ():
            object.__setattr__(self, name, values)
        super().__post_init__()

    def check(self) -> None:
        one_of(FAMILIES, graph=self.graph)
        at_least(2, d_vocab=self.d_vocab)
        at_least(5, n_ctx=self.n_ctx)
        at_least(1, seeds=self.seeds, batch_size=self.batch_size)
        at_least(WINDOW, steps=self.steps)

    def cells(self) -> list[Cell]:
        """Settings of the same sizes and seed are trained together, as one ensemble."""
        axes = {"d_vocab": self.d_vocab, "n_ctx": self.n_ctx, "seed": range(self.seed, self.seed + self.seeds)}
        return grid(measure_sizes, axes, cores=1, **self.flags("graph", "alpha", "steps", "batch_size"))

    def report(self, rows: Mapping[str, Sequence[Row]]) -> Report:
        table = pd.DataFrame([row for of_cell in rows.values() for row in of_cell])
        fits = fit_steps(table, self.seed)
        counts = count(table)
        return Report(
            title="What can be learned: graph, loss and steps",
            checks=make_checks(table, fits),
            results={
                "config": {"n_settings": len(table)},
                "counts": counts,
                "steps_scaling": {name: vars(exponent) for name, exponent in fits.items()},
                "settings": table.to_dict("records"),
            },
            sections=[
                Section(
                    "Graph and loss",
                    "One mark a setting in which both were reached: the step from which the graph is there, against "
                    "the step from which the loss is. Below the diagonal the graph came first.",
                    figures=plot_learned("first", table, "loss_step", "step from which the loss is there"),
                    table=counts,
                ),
                Section(
                    "Without the graph",
                    "One mark a setting: edges that are there at the end, against the excess of the loss over the edge "
                    "posterior. At the left the loss is that of the posterior, which knows the graph; low marks there "
                    "do without it.",
                    figures={"without": plot_without(table)},
                ),
                Section(
                    "Steps",
                    "One mark a setting in which the graph was learned; the fit is over all of them at once.",
                    figures=plot_learned("g", table, "g", "predicted g, mean over edges")
                    | plot_learned("n_ctx", table, "n_ctx", "context length n_ctx"),
                ),
            ],
            saved={"learnability.parquet": lambda path: table.to_parquet(path)},
        )


def measure_sizes(
    d_vocab: int, n_ctx: int, seed: int, graph: Sequence[str], alpha: Sequence[float], steps: int, batch_size: int
) -> list[Row]:
    """A row for every graph and alpha of one d_vocab, n_ctx and seed, trained side by side."""
    settings: list[Row] = [
        {"graph": g, "d_vocab": d_vocab, "n_ctx": n_ctx, "alpha": a, "seed": seed} for g in graph for a in alpha
    ]
    tasks = [
        cc.InContextTask(make_graph(s["graph"], n_ctx, seed=seed), d_vocab=d_vocab, alpha=s["alpha"]) for s in settings
    ]
    models = [cc.disentangled_transformer(d_vocab, n_ctx) for _ in tasks]
    config = cc.TrainConfig(cc.training.default_stages(steps), batch_size=batch_size, seed=seed)
    record = cc.RecordAt(n_log_spaced=RECORDS, layers=(0,), score_gradients=False)
    records = cc.train_ensemble(models, tasks, [config] * len(tasks), record=record, progress=False)
    return [
        setting | measure_model(model, task, of, seed)
        for setting, model, task, of in zip(settings, models, tasks, records, strict=True)
    ]


def measure_model(model: Any, task: cc.InContextTask, record: cc.TrainingRecord, seed: int) -> Row:
    edges, batch = sorted(cc.latent_edges(task.graph)), task.sample(SEQUENCES, seed=(seed, 21))
    test = task.sample(SEQUENCES, seed=(seed, 22))
    gradient = cc.measured_gradient(batch.tokens, batch.target_probs).value
    g = cc.predicted_gradient(task, 1024).value
    at = edge_steps(record, edges)
    posterior = task.bayes_loss(test)
    unigram = cc.tasks.best_unigram_loss(test)
    pull = [float(g[child, parent]) / (child + 1) for parent, child in edges]  # through the uniform softmax
    return {
        "edges": len(edges),
        "gradient": parents_first(gradient, task.graph) / len(edges),
        "attention": float(np.mean(np.isfinite(at))),
        "excess": float(cc.evaluate(model, test).mean()) - posterior,
        "gain": unigram - posterior,
        "graph_step": quantile_step(at),
        "loss_step": loss_step(record.losses, unigram - REACHED * (unigram - posterior)),
        "g": float(np.mean([float(g[c, p]) for p, c in edges])),
        "order": rank_correlation(np.array(pull), -np.array(at)),  # of the predicted score gradient with how early
        "edge_steps": at,
    }


def edge_steps(record: cc.TrainingRecord, edges: Sequence[tuple[int, int]]) -> list[float]:
    """The recorded step from which each edge is there; infinity for one that is not at the end."""
    assert record.attention is not None
    weights = torch.stack([record.attention[:, 0, 0, child, parent] for parent, child in edges], dim=1)
    half_way = torch.tensor([(1 + 1 / (child + 1)) / 2 for _, child in edges])
    stays = (weights >= half_way).flip(0).cumprod(dim=0).flip(0).bool()
    first = [record.steps[int(of_edge.int().argmax())] if of_edge[-1] else math.inf for of_edge in stays.T]
    return [float(step) for step in first]


def quantile_step(at: Sequence[float]) -> float:
    """The step at which nine edges of ten are there; NaN if they never are.

    >>> quantile_step([3.0, 1.0, 2.0]), quantile_step([1.0, math.inf])
    (3.0, nan)
    """
    step = sorted(at)[math.ceil(REACHED * len(at)) - 1]
    return step if math.isfinite(step) else math.nan


def loss_step(losses: torch.Tensor, level: float) -> float:
    """The first step at which the mean of the last WINDOW losses is at the level; NaN if none is."""
    means = np.convolve(losses.double().numpy(), np.ones(WINDOW) / WINDOW, mode="valid")
    reached = np.flatnonzero(means <= level)
    return float(reached[0] + WINDOW) if len(reached) else math.nan


# ---- what the rows add up to


def fit_steps(table: pd.DataFrame, seed: int) -> dict[str, Exponent]:
    """Exponents of g, n_ctx and d_vocab in the steps until the graph is there, over the settings in which it is.

    g is that of d_vocab and alpha, whatever graph and n_ctx: these pairs are what is resampled.
    """
    there = table[table.graph_step.notna() & (table.graph_step > 0) & (table.g > 0)]
    variables = {name: there[name].tolist() for name in ("g", "n_ctx", "d_vocab")}
    groups = list(zip(there.d_vocab, there.alpha, strict=True))
    return fit_exponents(variables, there.graph_step.tolist(), groups, seed=seed)


def count(table: pd.DataFrame) -> list[Row]:
    graph, loss = table.graph_step.notna(), table.loss_step.notna()
    kinds = {
        "settings": graph | ~graph,
        "graph before loss": graph & loss & (table.graph_step < table.loss_step),
        "loss before graph": graph & loss & (table.graph_step >= table.loss_step),
        "graph without loss": graph & ~loss,
        "loss without graph": loss & ~graph,
        "neither": ~loss & ~graph,
        "gradient has the graph": table.gradient >= REACHED,
    }
    return [
        {"graph": name, **{k: int(v[of.index].sum()) for k, v in kinds.items()}} for name, of in table.groupby("graph")
    ]


def counted(table: pd.DataFrame) -> str:
    return ", ".join(f"{name} {len(of)}" for name, of in table.groupby("graph")) or "none"


def make_checks(table: pd.DataFrame, fits: Mapping[str, Exponent]) -> list[Check]:
    learned, found = table[table.graph_step.notna()], table.gradient >= REACHED
    both = learned[learned.loss_step.notna()]
    without = table[table.loss_step.notna() & (table.attention < 0.5)]
    had, of_learned = is_share(learned.gradient >= REACHED, 0.9)
    most, of_both = is_share(both.graph_step < both.loss_step, 0.5)
    return [
        Check(
            had,
            "Where training finds the graph the first gradient had it, in 90% of settings",
            f"in {of_learned}; it also has it in {int((found & table.graph_step.isna()).sum())} others",
        ),
        Check(
            len(without) > 0,
            "The loss can be reached without the graph: with fewer than half of the edges",
            f"{len(without)} of {len(table)} settings: {counted(without)}",
        ),
        Check(
            falls(fits.get("g")),
            "More information, fewer steps: the exponent of g is below 0",
            "; ".join(f"steps as {name}^{exponent}" for name, exponent in fits.items()) or "too few settings",
        ),
        Check(most, "Where both are reached, the graph is there before the loss in most settings", f"in {of_both}"),
    ]


def plot_learned(name: str, table: pd.DataFrame, x: str, xlabel: str) -> dict[str, Axes]:
    """A mark a setting in which the graph was learned, coloured by family; no figure where there is none."""
    points = curves_of(table[table[x] > 0], x, "graph_step", "{graph}", mean=False)
    same, ylabel = ("graph and loss at once", 1.0, 1.0), "step from which the graph is there"
    bound = same if x == "loss_step" else None
    return {name: figures.plot_scaling(points, {}, ylabel=ylabel, xlabel=xlabel, bound=bound)} if points else {}


def plot_without(table: pd.DataFrame) -> Axes:
    ax = Figure(figsize=(5.6, 3.9), layout="constrained").add_subplot()
    for k, (family, of) in enumerate(table.groupby("graph")):
        ax.plot(
            of.excess, of.attention, markersize=4, markerfacecolor="none", label=str(family), **look_of(k, line=False)
        )
    ax.set(xlabel="loss - edge posterior (nats)", ylabel="share of edges that are there")
    ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
    legend_below(ax)
    return ax
