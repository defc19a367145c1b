"""What `generalization` measures: one trained model on every family of transition matrices, and on the worst found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.models import HookedTransformer
from causal_circuits.studies import algorithm_1
from causal_circuits.studies.algorithm_1 import Variant
from causal_circuits.studies.tables import make_graph

MARGIN = 0.2  # a matrix counts as excluded by training if it differs by so much from each training matrix
Row = dict[str, Any]
Predictor = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """The flags that all models of a run have in common; `seed` draws test sequences and families of matrices."""

    graph: str
    d_vocab: int
    alpha: float
    gamma: float
    steps: Sequence[int]
    kernels: int
    test: int
    starts: int
    rounds: int
    seed: int

    def family(self, name: str, seed: int) -> np.ndarray:
        """[kernels, d_vocab, d_vocab] of a family, entries bounded below."""
        return cc.tasks.matrix_family(name, self.kernels, self.d_vocab, gamma=self.gamma, seed=self.seed + seed)

    def task(self, n_ctx: int, **prior: Any) -> cc.InContextTask:
        return cc.InContextTask(make_graph(self.graph, n_ctx), self.d_vocab, **prior)


def measure_model(variant: str, n_ctx: int, seed: int, sizes: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Train one model, and measure it on every family of matrices and on the worst that a search finds.

    Dirichlet families are the prior itself, whose edge posterior is in closed form; the others are a uniform draw
    from `kernels` matrices, whose edge posterior is the mixture over these.
    """
    shared, how = Sizes(**sizes), algorithm_1.variant(variant)
    task = shared.task(n_ctx, alpha=shared.alpha)
    model = train(how, task, shared, seed)
    labels = {"model": variant, "n_ctx": n_ctx, "seed": seed}
    families = []
    for index, family in enumerate(cc.tasks.MATRIX_FAMILIES):
        matrices = shared.family(family, seed=index)
        name, _, alpha = family.partition(" ")
        own = shared.task(
            n_ctx, **({"alpha": float(alpha)} if name == "dirichlet" else {"transition_matrices": matrices})
        )
        families.append({**labels, "family": family, **measure_family(model, task, own, matrices, shared, index)})
    labels["match_strength"] = algorithm_1.match_strength(model) if how.reduced else float("nan")
    worst = [labels | row for row in measure_worst(model, task, shared, seed)]
    return {"families": families, "worst": worst, "examples": [labels | example(model, task, shared)]}


def measure_restricted(variant: str, n_ctx: int, family: str, sizes: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Train on one family alone; a row for each other family, on its matrices that training excludes."""
    shared, rows = Sizes(**sizes), []
    known = shared.family(family, seed=100)
    task = shared.task(n_ctx, transition_matrices=known)
    model = train(algorithm_1.variant(variant), task, shared, shared.seed)
    pattern = cc.mean_attention(model, task.sample(128, seed=(shared.seed, 3)).tokens)[0, 0]
    attention = float(cc.graphs.parent_attention(pattern, task.graph).mean())
    for index, other in enumerate(cc.tasks.MATRIX_FAMILIES):
        matrices = shared.family(other, seed=index)
        excluded = outside(matrices, known)
        if other == family or len(excluded) < 2:
            continue
        own = shared.task(n_ctx, transition_matrices=excluded)
        labels = {"model": variant, "n_ctx": n_ctx, "trained_on": family, "family": other}
        share = {"parent_attention": attention, "share_of_kernels_excluded": len(excluded) / len(matrices)}
        rows.append({**labels, **share, **measure_family(model, task, own, excluded, shared, index)})
    return {"restricted": rows}


def train(how: Variant, task: cc.InContextTask, sizes: Sizes, seed: int) -> HookedTransformer:
    model, (first, second) = algorithm_1.empty_model(how, task), sizes.steps
    algorithm_1.run_stage(1, how, model, task, first, batch_size=512, seed=seed)
    algorithm_1.run_stage(2, how, model, task, second, batch_size=512, seed=seed)
    return model


def measure_family(
    model: HookedTransformer,
    task: cc.InContextTask,
    own: cc.InContextTask,
    matrices: np.ndarray,
    sizes: Sizes,
    index: int,
) -> dict[str, float]:
    """A model trained on `task`, on sequences of `own`, whose prior `matrices` are drawn from."""
    test = own.sample(sizes.test, seed=(sizes.seed, 6, index))
    losses = cc.evaluate(model, test)
    posterior = cc.tasks.cross_entropy(own.bayes_predictor(test.tokens), test.target_probs)
    excess, whole = losses - posterior, algorithm_1.has_every_token(test.tokens, task.d_vocab)
    return {
        "loss": float(losses.mean()),
        "entropy": float(cc.tasks.cross_entropy(test.target_probs, test.target_probs).mean()),
        "own_edge_posterior": float(posterior.mean()),
        "training_edge_posterior": task.bayes_loss(test),
        "excess": float(excess.mean()),
        "excess_error": cc.interventions.standard_error(excess),
        # where a token is absent the reduced model says 0, and its loss is log(1e-9)
        "share_with_all_tokens": float(whole.double().mean()),
        "excess_with_all_tokens": float(excess[whole].mean()),
        **uniform_errors(model, task, matrices[: max(2, sizes.kernels // 32)], seed=sizes.seed + 7),
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
    model: HookedTransformer, task: cc.InContextTask, matrices: np.ndarray, seed: int, n: int = 512
) -> dict[str, float]:
    """The largest error over query tokens and matrices: of model, posterior and frequencies, and between."""
    known = predictors(model, task)

    def largest(name: str, reference: Predictor | None = None) -> float:
        errors = partial(cc.generalization.prediction_errors, known[name], task.graph, reference=reference)
        return float(np.nanmax([errors(matrix, n_sequences=n, seed=seed) for matrix in matrices]))

    return {
        "uniform_error": largest("model"),
        "uniform_error_of_edge_posterior": largest("edge_posterior"),
        "uniform_error_of_frequencies": largest("frequencies"),
        "uniform_error_from_frequencies": largest("model", known["frequencies"]),
    }


def example(model: HookedTransformer, task: cc.InContextTask, sizes: Sizes, family: str = "sticky") -> Row:
    """Of 64 sequences of another family the one with the query's token most often: its row, and what each predicts."""
    own = sizes.task(task.n_ctx, transition_matrices=sizes.family(family, seed=0))
    batch = own.sample(64, seed=(sizes.seed, 8))
    seen = (batch.tokens == batch.tokens[:, -1:]).sum(dim=1)
    batch = batch[seen.argmax()[None]]
    predicted = {name: predict(batch.tokens)[0].tolist() for name, predict in predictors(model, task).items()}
    return {
        "family": family,
        "query": int(batch.tokens[0, -1]),
        "truth": batch.target_probs[0].tolist(),
        "predicted": predicted,
    }


def measure_worst(model: HookedTransformer, task: cc.InContextTask, sizes: Sizes, seed: int) -> Iterator[Row]:
    """The worst matrix that a search finds, against its own row and against frequencies; judged on fresh draws."""
    known = predictors(model, task)
    for against, reference in (("kernel", None), ("frequencies", known["frequencies"])):
        errors_on = partial(cc.generalization.prediction_errors, known["model"], task.graph, reference=reference)
        worst = cc.generalization.worst_matrix(
            partial(largest_error, errors_on, seed=seed),
            task.d_vocab,
            gamma=sizes.gamma,
            n_start=sizes.starts,
            n_rounds=sizes.rounds,
            seed=seed,
        )
        law = cc.tasks.stationary_law(worst.matrix[None])[0]
        errors = errors_on(worst.matrix, n_sequences=4096, seed=seed + 1)
        yield {
            "against": against,
            "start_error": worst.start_error,
            "found_error": worst.error,
            "kernel": worst.matrix.tolist(),
            "share_of_worst_query": float(law[np.nanargmax(errors)]),
            **uniform_errors(model, task, worst.matrix[None], seed=seed + 1, n=4096),
        }


def largest_error(errors_on: Callable[..., np.ndarray], matrix: np.ndarray, seed: int) -> float:
    """What the search makes large: the error of the worst query token, on 256 sequences."""
    return float(np.nanmax(errors_on(matrix, n_sequences=256, seed=seed)))
