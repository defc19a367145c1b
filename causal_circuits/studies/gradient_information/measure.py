"""What `gradient_information` measures: one setting, one random forest, one training, one check of the closed form."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import networkx as nx
import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.statistics import rank_correlation
from causal_circuits.studies.tables import make_graph

Information = cc.information.Information
MATRIX_BUDGET = 8e8  # spent on G: fewer transition matrices for longer contexts and larger vocabularies
PARTS = 8  # g, G and the sequences are taken in as many: how much the slopes of parts differ is the slope's error
CHECK_BETA_0 = 1e-3  # layer 1's scale in the model whose backward pass is compared with the closed form
FOREST_SEQUENCES = 50_000


def measure_setting(
    graph: str,
    d_vocab: int,
    alpha: float,
    n_ctx: int,
    n_sequences: int,
    seed: Sequence[int],
    with_sweep: bool,
    with_matrices: bool,
) -> dict[str, Any]:
    """The measured gradient of one task beside both predictions; no two settings share sequences or matrices.

    `by_g` compares the measured gradient with g, `by_finite` with G, `bias` G with g (no noise of sequences in it).
    `prediction_error` is that of the slope on G from G's own transition matrices, `sampling_error` from the sequences;
    `slope_error_finite` holds both, `slope_error_g` both for the slope on g.
    """
    task = cc.InContextTask(make_graph(graph, n_ctx, seed=seed[0] + n_ctx), d_vocab=d_vocab, alpha=alpha)
    batch = task.sample(n_sequences, seed=tuple(seed))
    own_seeds = [3 * (PARTS * (1000 * seed[0] + seed[1]) + part) for part in range(PARTS)]  # G uses three from each
    limits = [cc.predicted_gradient(task, 16_384 // PARTS, seed=own) for own in own_seeds]
    parts = [cc.information.finite_context_gradient(task, n_matrices_for(task) // PARTS, seed=own) for own in own_seeds]
    g, finite = mean_of_parts(limits), mean_of_parts(parts)
    measured = {of: cc.measured_gradient(batch.tokens, batch.target_probs, of) for of in ("weights", "scores")}
    cells = cc.graphs.attention_cells(task.graph)
    parent, child = min((parent, child) for child, parent in cells)
    pieces = gradients_of_parts(batch)
    of_matrices, of_sequences = slope_errors(pieces, parts, task.graph)
    same = {"graph": graph, "d_vocab": d_vocab, "alpha": float(alpha), "n_ctx": n_ctx}
    weights = three_comparisons(measured["weights"], g, finite, task.graph, "weights")
    with_rivals = [rank for (i, _), rank in zip(cells, weights["by_g"].parent_ranks, strict=True) if i > 1]
    setting = {
        **same,
        "n_sequences": n_sequences,
        "edge_information": float(g.value[child, parent]),
        "prediction_error": of_matrices,
        "sampling_error": of_sequences,
        "slope_error_finite": float(np.hypot(of_matrices, of_sequences)),
        "slope_error_g": float(np.hypot(*slope_errors(pieces, limits, task.graph))),
        "weights": weights,
        "scores": three_comparisons(measured["scores"], g, finite, task.graph, "scores"),
        "rivals_beaten": sum(rank == 1 for rank in with_rivals),
        "n_rivals": len(with_rivals),
    }
    matrices = {"graph": task.graph, "measured": measured["weights"], "g": g, "finite": finite}
    return {
        "setting": setting,
        "sweep": [same | point for point in sweep_sequences(batch, g, finite, task.graph)] if with_sweep else [],
        "matrices": matrices if with_matrices else None,
    }


def n_matrices_for(task: cc.InContextTask) -> int:
    """As many transition matrices for G as the budget allows; more where they differ more from each other."""
    cost = task.n_ctx**2.5 * task.d_vocab**2 * min(float(task.alpha), 1.0) ** 0.5  # type: ignore[arg-type]
    return PARTS * int(np.clip(MATRIX_BUDGET / cost / PARTS, 16, 1024))


def mean_of_parts(parts: Sequence[Information]) -> Information:
    """The prediction that several independent ones make together."""
    value = torch.stack([part.value for part in parts]).mean(dim=0)
    error = torch.stack([part.standard_error.square() for part in parts]).sum(dim=0).sqrt() / len(parts)
    return Information(value, error, sum(part.n_samples for part in parts))


def gradients_of_parts(batch: cc.Batch) -> list[Information]:
    size = len(batch) // PARTS
    parts = [batch[start : start + size] for start in range(0, PARTS * size, size)]
    return [cc.measured_gradient(part.tokens, part.target_probs) for part in parts]


def slope_errors(
    measured: Sequence[Information], predicted: Sequence[Information], graph: nx.DiGraph
) -> tuple[float, float]:
    """Standard errors of the slope of measured on predicted: from the prediction's matrices, and from the sequences.

    Each is given in parts that share nothing. Rare matrices hold much of a prediction at small alpha, and a sequence
    moves all entries at once: the errors of entries do not add up to that of a slope.
    """
    whole_measured, whole_predicted = mean_of_parts(measured).value, mean_of_parts(predicted).value
    by_prediction = [cc.compare_gradient(whole_measured, part.value, graph).slope for part in predicted]
    by_sequences = [cc.compare_gradient(part.value, whole_predicted, graph).slope for part in measured]
    error_of, of_sequences = (float(np.std(s, ddof=1) / len(s) ** 0.5) for s in (by_prediction, by_sequences))
    return error_of, of_sequences


def three_comparisons(
    measured: Information, g: Information, finite: Information, graph: nx.DiGraph, of: Literal["weights", "scores"]
) -> dict[str, cc.information.GradientComparison]:
    """Measured with g (the paper), measured with G (noise only), G with g (the short context only)."""
    expected = cc.information.through_softmax(finite.value) if of == "scores" else finite.value
    error = measured.standard_error
    return {
        "by_g": cc.compare_gradient(measured.value, g.value, graph, of=of, standard_error=error),
        "by_finite": cc.compare_gradient(measured.value, finite.value, graph, of=of, standard_error=error),
        "bias": cc.compare_gradient(expected, g.value, graph, of=of),
    }


def sweep_sequences(
    batch: cc.Batch, g: Information, finite: Information, graph: nx.DiGraph
) -> Iterator[dict[str, Any]]:
    """Correlations of one task from a few sequences up to all: noise falls, the bias of a short context stays."""
    n = len(batch)
    for count in np.unique(np.geomspace(min(1000, n), n, 6).round().astype(int)).tolist():
        measured = cc.measured_gradient(batch.tokens[:count], batch.target_probs[:count])
        compared = three_comparisons(measured, g, finite, graph, "weights")
        yield (
            {"n_sequences": count, "noise_share": compared["by_g"].noise_share}
            | {f"correlation_{name}": value.correlation for name, value in compared.items()}
            | {f"slope_{name}": value.slope for name, value in compared.items()}
        )


def check_forest(seed: int) -> dict[str, Any]:
    """One gradient of a random forest of random size: how many parents are the largest entry of their row."""
    rng = np.random.default_rng((seed, 50))
    n_ctx, d_vocab = int(rng.integers(10, 61)), int(rng.integers(2, 13))
    alpha = float(rng.choice([0.1, 0.3, 1.0]))
    graph = cc.random_forest(n_ctx, 0.5, seed=rng)
    batch = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha).sample(FOREST_SEQUENCES, seed=(seed, 51))
    measured = cc.measured_gradient(batch.tokens, batch.target_probs)
    ranks = cc.compare_gradient(measured.value, measured.value, graph).parent_ranks
    recovery = cc.compare_graphs(graph, cc.recover_graph(batch.tokens, batch.target_probs).graph)
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
    model = cc.models.warm_start(cc.reduced_transformer(4, 12, dtype=torch.float64), CHECK_BETA_0)
    gradients = cc.training.take_snapshot(model, batch).score_gradients
    assert gradients is not None  # a snapshot records all quantities unless told otherwise
    recorded = gradients[0, 0].double() * 4 * 12 / CHECK_BETA_0
    closed = cc.measured_gradient(batch.tokens, batch.target_probs, "scores").value
    return float((recorded - closed).abs().max() / closed.abs().max())


def train_and_compare(seed: int, steps: int) -> dict[str, Any]:
    """Train on a forest, from a warm start: each recorded gradient beside g, and which edges form first.

    An edge has formed where attention to the parent stays at one half or more; `information` is the pull on it at the
    start, and `order_agreement` the rank correlation of that and earliness (edges never formed come last).
    """
    task = cc.InContextTask(make_graph("forest", 20, seed=seed + 20), d_vocab=3, alpha=0.1)
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    config = cc.TrainConfig.warm(steps, seed=seed)
    record = cc.train(model, task, config, record=cc.RecordAt(n_log_spaced=20), progress=False)
    g, patterns = cc.predicted_gradient(task).value, record.of_layer("attention", 0)[:, 0]
    compared = [
        cc.compare_gradient(gradient, g, task.graph, of="scores", attention=pattern)
        for gradient, pattern in zip(record.of_layer("score_gradients", 0)[:, 0], patterns, strict=True)
    ]
    attention = cc.graphs.parent_attention(patterns, task.graph)
    pull = cc.graphs.parent_attention(cc.information.through_softmax(g), task.graph).numpy()
    formed_at = [formed_from(record.steps, weights) for weights in attention.T]
    late = np.array([np.inf if step is None else step for step in formed_at], dtype=float)
    return {
        "steps": record.steps,
        "correlation": [comparison.correlation for comparison in compared],
        "rows_right": [comparison.rows_right for comparison in compared],
        "edges": [(parent, child) for child, parent in cc.graphs.attention_cells(task.graph)],
        "attention": attention,
        "formed_at": formed_at,
        "information": pull.tolist(),
        "order_agreement": rank_correlation(pull, -late),
    }


def formed_from(steps: Sequence[int], weights: torch.Tensor) -> int | None:
    """The first step from which on the attention stays at one half or more."""
    below = (~(weights >= 0.5)).nonzero()  # NaN is not formed
    first = int(below[-1]) + 1 if len(below) else 0
    return steps[first] if first < len(steps) else None
