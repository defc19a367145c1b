"""What `generalization` measures: one trained model on every family of transition matrices, and on the worst found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.models import HookedTransformer
from causal_circuits.studies import algorithm_1
from causal_circuits.studies.algorithm_1 import Variant
from causal_circuits.studies.tables import GRAPHS

MARGIN = 0.2  # a matrix counts as excluded by training if it differs by so much from each training matrix
Predictor = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """What all models of a run have in common; `data_seed` draws test sequences and families of matrices."""

    graph: str
    d_vocab: int
    alpha: float
    gamma: float
    steps: Sequence[int]
    n_matrices: int
    n_test: int
    starts: int
    rounds: int
    data_seed: int

    def family(self, name: str, seed: int) -> np.ndarray:
        """[n_matrices, d_vocab, d_vocab] of a family, entries bounded below."""
        return cc.tasks.matrix_family(name, self.n_matrices, self.d_vocab, gamma=self.gamma, seed=self.data_seed + seed)


def measure_model(variant: str, n_ctx: int, seed: int, sizes: Mapping[str, Any]) -> dict[str, list]:
    """Train one model, and measure it on every family of matrices and on the worst that a search finds."""
    shared, how = Sizes(**sizes), algorithm_1.variant(variant)
    task = cc.InContextTask(GRAPHS[shared.graph](n_ctx), shared.d_vocab, shared.alpha)
    model = train(how, task, shared, seed)
    labels = {"model": variant, "n_ctx": n_ctx, "seed": seed}
    strength = {"match_strength": algorithm_1.match_strength(model) if how.reduced else float("nan")}
    return {
        "families": measure_families(model, task, shared, labels),
        "worst": measure_worst(model, task, shared, labels | strength, seed),
    }


def measure_restricted(variant: str, n_ctx: int, family: str, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train on one family alone; a row for each other family, on its matrices that training excludes."""
    shared, rows = Sizes(**sizes), []
    known = shared.family(family, seed=100)
    task = cc.InContextTask(GRAPHS[shared.graph](n_ctx), shared.d_vocab, kernels=known)
    model = train(algorithm_1.variant(variant), task, shared, shared.data_seed)
    pattern = cc.mean_attention(model, task.sample(128, seed=(shared.data_seed, 3)).tokens)[0, 0]
    attention = float(cc.graphs.parent_attention(pattern, task.graph).mean())
    for index, other in enumerate(cc.tasks.MATRIX_FAMILIES):
        matrices = shared.family(other, seed=index)
        excluded = outside(matrices, known)
        if other == family or len(excluded) < 2:
            continue
        own = cc.InContextTask(task.graph, shared.d_vocab, kernels=excluded)
        labels = {"model": variant, "n_ctx": n_ctx, "trained_on": family, "family": other}
        share = {"parent_attention": attention, "share_of_kernels_excluded": len(excluded) / len(matrices)}
        rows.append({**labels, **share, **measure_family(model, task, own, excluded, shared, index)})
    return rows


def train(how: Variant, task: cc.InContextTask, sizes: Sizes, seed: int) -> HookedTransformer:
    """Both stages of Algorithm 1."""
    model, (first, second) = algorithm_1.empty_model(how, task), sizes.steps
    stages = (
        (algorithm_1.first_stage(how, task, first), how.beta0, seed),
        (algorithm_1.second_stage(how, second), None, seed + algorithm_1.SEED_STRIDE),
    )
    for stage, beta0, own_seed in stages:
        algorithm_1.run_stage(model, task, stage, beta0=beta0, batch_size=512, seed=own_seed)
    return model


def measure_families(
    model: HookedTransformer, task: cc.InContextTask, sizes: Sizes, labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Loss against the family's own edge posterior, and the uniform error, on every family.

    Dirichlet families are the prior itself, whose edge posterior is in closed form; the others are a uniform draw
    from `n_matrices` matrices, whose edge posterior is the mixture over these.
    """
    rows = []
    for index, family in enumerate(cc.tasks.MATRIX_FAMILIES):
        matrices = sizes.family(family, seed=index)
        name, _, alpha = family.partition(" ")
        prior: dict[str, Any] = {"alpha": float(alpha)} if name == "dirichlet" else {"kernels": matrices}
        own = cc.InContextTask(task.graph, task.d_vocab, **prior)
        rows.append({**labels, "family": family, **measure_family(model, task, own, matrices, sizes, index)})
    return rows


def measure_family(
    model: HookedTransformer,
    task: cc.InContextTask,
    own: cc.InContextTask,
    matrices: np.ndarray,
    sizes: Sizes,
    index: int,
) -> dict[str, float]:
    """A model trained on `task`, on sequences of `own`, whose prior `matrices` are drawn from."""
    test = own.sample(sizes.n_test, seed=(sizes.data_seed, 6, index))
    losses = cc.evaluate(model, test)
    posterior = cc.tasks.cross_entropy(own.bayes_predictor(test.tokens), test.target_probs)
    excess, whole = losses - posterior, algorithm_1.has_every_token(test.tokens, task.d_vocab)
    return {
        "loss": float(losses.mean()),
        "entropy": float(cc.tasks.cross_entropy(test.target_probs, test.target_probs).mean()),
        "own_edge_posterior": float(posterior.mean()),
        "training_edge_posterior": task.bayes_loss(test),
        "excess": float(excess.mean()),
        "excess_error": float(excess.std() / len(test) ** 0.5),
        # where a token is absent the reduced model says 0, and its loss is log(1e-9)
        "share_with_all_tokens": float(whole.double().mean()),
        "excess_with_all_tokens": float(excess[whole].mean()),
        **uniform_errors(model, task, matrices[: max(2, sizes.n_matrices // 32)], seed=sizes.data_seed + 7),
    }


def outside(matrices: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The matrices that differ from every known one by MARGIN or more in some entry."""
    nearest = [float(np.abs(known - matrix).max(axis=(1, 2)).min()) for matrix in matrices]
    return matrices[np.array(nearest) >= MARGIN]


def predictors(model: HookedTransformer, task: cc.InContextTask) -> dict[str, Predictor]:
    """Tokens to probabilities: the model, the training prior's edge posterior, and bare frequencies along the edges."""
    frequencies = cc.InContextTask(task.graph, task.d_vocab, alpha=1e-4)  # a prior too weak to be seen
    return {
        "model": lambda tokens: cc.log_probs(model, tokens).exp(),
        "edge_posterior": task.bayes_predictor,
        "frequencies": frequencies.bayes_predictor,
    }


def uniform_errors(
    model: HookedTransformer,
    task: cc.InContextTask,
    matrices: Sequence[np.ndarray] | np.ndarray,
    seed: int,
    n: int = 512,
) -> dict[str, float]:
    """The largest error over query tokens and matrices: of model, posterior and frequencies, and between."""
    known = predictors(model, task)

    def largest(name: str, reference: str | None = None) -> float:
        other = None if reference is None else known[reference]
        errors = [
            cc.generalization.prediction_errors(
                known[name], task.graph, matrix, n_sequences=n, seed=seed, reference=other
            )
            for matrix in matrices
        ]
        return float(np.nanmax(errors))

    return {
        "uniform_error": largest("model"),
        "uniform_error_of_edge_posterior": largest("edge_posterior"),
        "uniform_error_of_frequencies": largest("frequencies"),
        "uniform_error_from_frequencies": largest("model", "frequencies"),
    }


def largest_error(errors_on: Callable[..., np.ndarray], matrix: np.ndarray, seed: int) -> float:
    """What the search makes large: the error of the worst query token, on 256 sequences."""
    return float(np.nanmax(errors_on(matrix, 256, seed)))


def measure_worst(
    model: HookedTransformer, task: cc.InContextTask, sizes: Sizes, labels: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """The worst matrix that a search finds, against its own row and against frequencies; judged on fresh draws."""
    known, rows = predictors(model, task), []
    for against, reference in (("kernel", None), ("frequencies", known["frequencies"])):

        def errors_on(matrix: np.ndarray, n: int, seed: int, reference: Predictor | None = reference) -> np.ndarray:
            return cc.generalization.prediction_errors(
                known["model"], task.graph, matrix, n_sequences=n, seed=seed, reference=reference
            )

        worst = cc.generalization.worst_matrix(
            partial(largest_error, errors_on, seed=seed),
            task.d_vocab,
            gamma=sizes.gamma,
            n_start=sizes.starts,
            n_rounds=sizes.rounds,
            seed=seed,
        )
        law = cc.tasks.transition_matrices.stationary_law(worst.kernel[None])[0]
        errors = errors_on(worst.kernel, 4096, seed + 1)
        rows.append(
            {
                **labels,
                "against": against,
                "start_error": worst.start_error,
                "found_error": worst.error,
                "kernel": worst.kernel.tolist(),
                "share_of_worst_query": float(law[np.nanargmax(errors)]),
                **uniform_errors(model, task, [worst.kernel], seed=seed + 1, n=4096),
            }
        )
    return rows
