"""What `gradient_information.py` measures: settings, sample sizes, random forests, a training run. Not a script."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import networkx as nx
import numpy as np
import torch
from going_on import Units
from tqdm import tqdm

import causal_circuits as cc

KERNEL_BUDGET = 8e8  # spent on G: fewer kernels for longer contexts and larger vocabularies
PARTS = 8  # g, G and the sequences are taken in as many: how much the slopes of parts differ is the slope's error
EXAMPLE = ("measured", "g", "finite")  # matrices of the setting that is shown pair by pair
CHECK_BETA_0 = 1e-3  # layer 2's scale in the model whose backward pass is compared with the closed form
FOREST_SEQUENCES = 50_000
TRAINING_STEPS = 600


@dataclass(frozen=True)
class Setting:
    """One task measured: three comparisons for attention weights and for scores.

    `by_g` compares the measured gradient with g, `by_finite` with G, `bias` G with g (no noise of sequences in it).
    `prediction_error` is that of the slope on G from G's own kernels, `sampling_error` from the sequences;
    `slope_error_finite` holds both, `slope_error_g` both for the slope on g.
    """

    graph: str
    d_vocab: int
    alpha: float
    n_ctx: int
    n_sequences: int
    edge_information: float
    prediction_error: float
    sampling_error: float
    slope_error_finite: float
    slope_error_g: float
    weights: dict[str, cc.GradientComparison]
    scores: dict[str, cc.GradientComparison]
    rivals_beaten: int
    n_rivals: int

    def row(self) -> dict[str, object]:
        """The numbers of the table."""
        by_g, by_finite, bias = (self.weights[name] for name in ("by_g", "by_finite", "bias"))
        return {
            "graph": self.graph,
            "d_vocab": self.d_vocab,
            "alpha": self.alpha,
            "n_ctx": self.n_ctx,
            "corr g": by_g.correlation,
            "slope g": by_g.slope,
            "slope g: error": self.slope_error_g,
            "corr G": by_finite.correlation,
            "slope G": by_finite.slope,
            "G on g: corr": bias.correlation,
            "G on g: slope": bias.slope,
            "noise": by_g.noise_share,
            "slope G: error": self.slope_error_finite,
            "parents first": f"{sum(r == 1 for r in by_g.parent_ranks)}/{len(by_g.parent_ranks)}",
        }


@dataclass
class Agreement:
    """Everything measured, and what the pictures are drawn from."""

    settings: list[Setting]
    against_sequences: list[dict[str, Any]]
    forests: list[dict[str, Any]]
    backward_pass_difference: float
    formation: cc.Formation
    example: dict[str, Any]

    def as_json(self) -> dict[str, object]:
        """Every number as JSON values."""
        return {
            "settings": [asdict(setting) for setting in self.settings],
            "against_sequences": self.against_sequences,
            "forests": self.forests,
            "backward_pass_difference": self.backward_pass_difference,
            "training": {
                "steps": list(self.formation.steps),
                "correlation": [comparison.correlation for comparison in self.formation.comparisons],
                "rows_right": [comparison.rows_right for comparison in self.formation.comparisons],
                "edges": [list(edge) for edge in self.formation.edges],
                "formed_at": list(self.formation.formed_at),
                "information": self.formation.information.tolist(),
                "order_agreement": self.formation.order_agreement,
            },
        }


def measure_all(arguments: argparse.Namespace, units: Units, say: Callable[[str], None]) -> Agreement:
    """Every part, in order; every setting and every forest is a unit."""
    seed = arguments.seed
    say("1/4  the closed form of the gradient against a backward pass")
    difference = backward_pass_difference(seed)
    say("2/4  measured gradients beside g and G, and against the number of sequences")
    wanted = [
        (graph, d_vocab, alpha, n_ctx)
        for graph in arguments.graph
        for d_vocab in arguments.d_vocab
        for alpha in arguments.alpha
        for n_ctx in arguments.n_ctx
    ]
    settings, sweep, example = [], [], {}
    far = ("forest", min(arguments.alpha), min(arguments.n_ctx))  # where theory and measurement are furthest apart
    shown = max((i for i, (graph, _, *rest) in enumerate(wanted) if (graph, *rest) == far), default=0)
    hidden = arguments.quiet or not sys.stderr.isatty()
    for index, (graph, d_vocab, alpha, n_ctx) in enumerate(tqdm(wanted, disable=hidden)):
        task = cc.InContextTask(make_graph(graph, n_ctx, seed), d_vocab=d_vocab, alpha=alpha)
        make = partial(setting_and_sweep, task, graph, arguments, index, index == shown)
        setting, points, matrices = units.made(f"setting {index} {graph} {d_vocab} {alpha} {n_ctx}", make)
        settings.append(setting)
        sweep += points
        if index == shown:
            example = {"task": task, **matrices}
    say("3/4  row maxima of random forests")
    numbers = tqdm(range(seed, seed + arguments.forests), disable=hidden)
    forests = [units.made(f"forest {number}", partial(check_forest, number)) for number in numbers]
    say("4/4  a training run")
    return Agreement(settings, sweep, forests, difference, train_and_watch(seed, arguments.quick), example)


def setting_and_sweep(
    task: cc.InContextTask, graph: str, arguments: argparse.Namespace, index: int, is_shown: bool
) -> tuple[Setting, list[dict[str, Any]], dict[str, cc.Information]]:
    """One setting; against the number of sequences where that is swept; the matrices of the one that is shown."""
    setting, matrices = measure_setting(task, graph, arguments.sequences, (arguments.seed, index))
    swept = (task.n_ctx, float(task.alpha)) == (max(arguments.n_ctx[:3]), max(arguments.alpha))
    points = against_sequences(setting, matrices) if swept else []
    return setting, points, {name: matrices[name] for name in EXAMPLE} if is_shown else {}


def make_graph(name: str, n_ctx: int, seed: int) -> nx.DiGraph:
    """The graph of a name; forests have their own for every context length."""
    if name == "forest":
        return cc.random_forest(n_ctx, 0.5, seed=seed + n_ctx)
    return cc.chain_graph(n_ctx) if name == "chain" else cc.pairs_graph(n_ctx)


def n_kernels_for(task: cc.InContextTask) -> int:
    """As many kernels for G as the budget allows; more where kernels are sharp and differ more from each other."""
    cost = task.n_ctx**2.5 * task.d_vocab**2 * min(float(task.alpha), 1.0) ** 0.5
    return PARTS * int(np.clip(KERNEL_BUDGET / cost / PARTS, 16, 1024))


def mean_of_parts(parts: list[cc.Information]) -> cc.Information:
    """The prediction that several independent ones make together."""
    value = torch.stack([part.value for part in parts]).mean(dim=0)
    error = torch.stack([part.standard_error.square() for part in parts]).sum(dim=0).sqrt() / len(parts)
    return cc.Information(value, error, sum(part.n_samples for part in parts), parts[0].method)


def spread_of_slopes(slopes: list[float]) -> float:
    """Standard error of the mean of slopes, each from a part of the data or of the kernels."""
    return float(np.std(slopes, ddof=1) / len(slopes) ** 0.5)


def slope_errors(
    measured: list[cc.Information], predicted: list[cc.Information], graph: nx.DiGraph
) -> tuple[float, float]:
    """Standard errors of the slope of measured on predicted: from the prediction's kernels, and from the sequences.

    Each is given in parts that share nothing. Rare kernels hold much of a prediction at sharp kernels, and a sequence
    moves all entries at once: the errors of entries do not add up to that of a slope.
    """
    every, all_kernels = mean_of_parts(measured).value, mean_of_parts(predicted).value
    of_kernels = [cc.compare_gradient(every, part.value, graph).slope for part in predicted]
    of_sequences = [cc.compare_gradient(part.value, all_kernels, graph).slope for part in measured]
    return spread_of_slopes(of_kernels), spread_of_slopes(of_sequences)


def sequences_in_parts(batch: cc.Batch) -> list[cc.Information]:
    """The gradient of each of PARTS equal parts of the sequences; a rest is left out."""
    size = len(batch) // PARTS
    return [
        cc.measured_gradient(batch.tokens[start : start + size], batch.target_probs[start : start + size])
        for start in range(0, PARTS * size, size)
    ]


def measure_setting(task: cc.InContextTask, name: str, n: int, seed: tuple[int, int]) -> tuple[Setting, dict[str, Any]]:
    """The measured gradient of one task beside both predictions; no two settings share sequences or kernels."""
    batch = task.sample(n, seed=seed)
    own_seeds = [3 * (PARTS * (1000 * seed[0] + seed[1]) + part) for part in range(PARTS)]  # G uses three from each
    limits = [cc.predicted_gradient(task, 16_384 // PARTS, seed=own) for own in own_seeds]
    parts = [cc.finite_context_gradient(task, n_kernels_for(task) // PARTS, seed=own) for own in own_seeds]
    g, finite = mean_of_parts(limits), mean_of_parts(parts)
    measured = {of: cc.measured_gradient(batch.tokens, batch.target_probs, of) for of in ("weights", "scores")}
    rivals = cc.closest_rivals(measured["weights"].value, task.graph)
    parent, child = min(cc.latent_edges(task.graph))
    pieces = sequences_in_parts(batch)
    of_kernels, of_sequences = slope_errors(pieces, parts, task.graph)
    setting = Setting(
        graph=name,
        d_vocab=task.d_vocab,
        alpha=float(task.alpha),
        n_ctx=task.n_ctx,
        n_sequences=n,
        edge_information=float(g.value[child, parent]),
        prediction_error=of_kernels,
        sampling_error=of_sequences,
        slope_error_finite=float(np.hypot(of_kernels, of_sequences)),
        slope_error_g=float(np.hypot(*slope_errors(pieces, limits, task.graph))),
        weights=three_comparisons(measured["weights"], g, finite, task.graph, "weights"),
        scores=three_comparisons(measured["scores"], g, finite, task.graph, "scores"),
        rivals_beaten=sum(rival.excess > 0 for rival in rivals),
        n_rivals=len(rivals),
    )
    return setting, {"task": task, "batch": batch, "measured": measured["weights"], "g": g, "finite": finite}


def three_comparisons(
    measured: cc.Information, g: cc.Information, finite: cc.Information, graph: nx.DiGraph, of: str
) -> dict[str, cc.GradientComparison]:
    """Measured with g (the paper), measured with G (noise only), G with g (the short context only)."""
    through = cc.score_gradient_of if of == "scores" else (lambda matrix: matrix)
    error = measured.standard_error
    return {
        "by_g": cc.compare_gradient(measured.value, g.value, graph, of=of, standard_error=error),
        "by_finite": cc.compare_gradient(measured.value, finite.value, graph, of=of, standard_error=error),
        "bias": cc.compare_gradient(through(finite.value), g.value, graph, of=of),
    }


def against_sequences(setting: Setting, matrices: dict[str, Any]) -> list[dict[str, Any]]:
    """Correlations of one task from a few sequences up to all: noise falls, the finite-context bias stays."""
    batch, g, finite, task = (matrices[name] for name in ("batch", "g", "finite", "task"))
    n = len(batch)
    points = []
    for count in np.unique(np.geomspace(min(1000, n), n, 6).round().astype(int)).tolist():
        measured = cc.measured_gradient(batch.tokens[:count], batch.target_probs[:count])
        compared = three_comparisons(measured, g, finite, task.graph, "weights")
        points.append(
            {
                "graph": setting.graph,
                "d_vocab": setting.d_vocab,
                "alpha": setting.alpha,
                "n_ctx": setting.n_ctx,
                "n_sequences": count,
                **{f"correlation_{name}": value.correlation for name, value in compared.items()},
                **{f"slope_{name}": value.slope for name, value in compared.items()},
                "noise_share": compared["by_g"].noise_share,
            }
        )
    return points


def check_forest(seed: int) -> dict[str, Any]:
    """One gradient of a random forest of random size: how many parents are the largest entry of their row."""
    rng = np.random.default_rng((seed, 50))
    n_ctx, d_vocab = int(rng.integers(10, 61)), int(rng.integers(2, 13))
    alpha = float(rng.choice([0.1, 0.3, 1.0]))
    graph = cc.random_forest(n_ctx, 0.5, seed=rng)
    batch = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha).sample(FOREST_SEQUENCES, seed=(seed, 51))
    measured = cc.measured_gradient(batch.tokens, batch.target_probs)
    ranks = cc.compare_gradient(measured.value, measured.value, graph).parent_ranks
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    recovery = cc.compare_graphs(graph, found.graph)
    return {
        "seed": seed,
        "n_ctx": n_ctx,
        "d_vocab": d_vocab,
        "alpha": alpha,
        "edges": len(ranks),
        "parents_first": sum(rank == 1 for rank in ranks),
        "recovered": len(ranks) - len(recovery.missing),
        "false_edges": len(recovery.false),
    }


def backward_pass_difference(seed: int) -> float:
    """Relative difference of the closed form and TransformerLens hooks on the reduced model (float64, small beta0)."""
    task = cc.InContextTask(cc.random_forest(12, 0.5, seed=seed), d_vocab=4, alpha=0.3)
    batch = task.sample(512, seed=seed).to("cpu", torch.float64)
    model = cc.warm_start(cc.reduced_transformer(4, 12, dtype=torch.float64), CHECK_BETA_0)
    recorded = cc.take_snapshot(model, batch).score_gradients[0, 0].double() * 4 * 12 / CHECK_BETA_0
    closed = cc.measured_gradient(batch.tokens, batch.target_probs, "scores").value
    return float((recorded - closed).abs().max() / closed.abs().max())


def train_and_watch(seed: int, quick: bool) -> cc.Formation:
    """Train the two-layer model on a forest, from a warm start, and compare every recorded gradient with g."""
    task = cc.InContextTask(make_graph("forest", 20, seed), d_vocab=3, alpha=0.1)
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    config = cc.TrainConfig.warm(200 if quick else TRAINING_STEPS, seed=seed)
    record = cc.train(model, task, config, record=cc.RecordAt.log_spaced(20), progress=False)
    return cc.edge_formation(record, cc.predicted_gradient(task).value, task.graph)
