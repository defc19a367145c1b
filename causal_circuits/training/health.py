"""Trainings that go wrong: a non-finite loss stops the run; what else became of it is told afterwards.

A low loss is no proof of a graph, and a steady one no proof of an end: with the task, the loss is held to the lines of
uniform predictions, of the best unigram and of the edge posterior, and the attention to the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs import attention_cells
from causal_circuits.models import HookedTransformer, check_model, live_heads, log_probs
from causal_circuits.recording import TrainingRecord, watch_attention
from causal_circuits.tasks import Batch, InContextTask, Task, best_unigram_loss

# A tenth of a run at each end is compared; shorter runs say nothing.
SHORTEST = 40
# A loss has moved when two tenths differ by this many standard errors and by this share of the loss.
CLEAR, SHARE = 5.0, 0.01
# A loss is far above uniform predictions at twice theirs; above what any vocabulary's could cost (e^30 tokens) always.
FAR, LARGEST = 2.0, 30.0
# So near to a line, as a share of what lies between best unigram and edge posterior, is at it; in nats at the latter.
NEAR, NEAR_NATS = 0.2, 0.05
N_SEQUENCES = 4096
# What rounding may take from a loss of 0.
ROUNDING = 1e-6
# An edge is in the graph that layer 0 shows from this mean attention on, as in `extract_graph`.
FORMED = 0.5


class DivergenceError(FloatingPointError):
    """The loss or a gradient of a training step is non-finite.

    Attributes:
        step: at which it happened; so many optimiser steps were done before.
        member: of the ensemble; 0 where one model is trained.
        checkpoint: the step of the last good checkpoint (`restore_checkpoint` gives its weights to a model), or None.

    >>> model = cc.disentangled_transformer(3, 6)
    >>> config = cc.TrainConfig.joint(20, learning_rate=1e30, batch_size=8)
    >>> try:
    ...     cc.train(model, task, config)
    ... except cc.training.DivergenceError as error:
    ...     print(error.checkpoint is None, 0 < error.step < 20)
    True True
    """

    def __init__(self, message: str, step: int, member: int, checkpoint: int | None) -> None:
        super().__init__(message)
        self.step, self.member, self.checkpoint = step, member, checkpoint


Verdict = Literal["falls", "plateau", "diverges", "rises", "too short", "unigram", "no graph", "converged"]


@check_arguments
@dataclass(frozen=True)
class TrainingHealth:
    """What became of a training's loss.

    Attributes:
        verdict: "falls", "plateau" (it ends where it began), "diverges" (it ends above its start, far above uniform
            predictions, or non-finite), "rises" (it ends clearly above its lowest tenth), "too short" to tell; with a
            task, also "unigram" (it stays at the loss of the best unigram), "no graph" (it is as low as the edge
            posterior's, with fewer than half of the edges in layer 0's attention) and "converged" (it ends where it
            began, as low as the edge posterior's); without a task "converged" is a loss of 0, the least there is.
        first, lowest, last: mean loss of the first tenth, of the lowest and of the last, nats.
        advice: what to try; empty where nothing is wrong.

    >>> falling = torch.linspace(2.0, 1.0, 200, dtype=torch.float64)
    >>> record = cc.TrainingRecord(falling, (), falling[:0], attention=None, score_gradients=None)
    >>> cc.training.training_health(record).verdict
    'falls'
    """

    verdict: Verdict
    first: float
    lowest: float
    last: float
    advice: str


ADVICE = {
    "falls": "",
    "converged": "",
    "too short": "",
    "plateau": "the loss never left its start: raise the learning rate, start from a warm layer 1 "
    "(TrainConfig.warm()), or train longer",
    "diverges": "the loss ends above its start: lower the learning rate (a third is a good first try), or give the "
    'last stage schedule="cosine"',
    "rises": "the loss fell and rose again: lower the learning rate of the stage in which it rose, or give that stage "
    'schedule="cosine"',
    "far above": "the loss ends far above that of uniform predictions: lower the learning rate, or the scale of the "
    "weights that the training begins with",
    "non-finite": "the loss is non-finite: lower the learning rate",
    "unigram": "the loss stays at that of the best unigram, token frequencies without the graph: train longer, raise "
    "the learning rate, or start from a warm layer 1 (TrainConfig.warm())",
}


@check_arguments
def training_health(
    record: TrainingRecord, task: Task | None = None, model: HookedTransformer | None = None
) -> TrainingHealth:
    """What became of the loss, and what to try.

    Means of tenths of the run are compared. A difference counts if it is five standard errors (of the batches' losses
    about their tenth's mean) and one per cent of the loss.

    Args:
        record: of the run.
        task: what it was trained on; without it, no line is known that the loss could be read against.
        model: the trained one, for its attention; by default what was recorded of layer 0 at the last step counts.

    >>> task, model = cc.InContextTask(cc.chain_graph(6), d_vocab=3), cc.disentangled_transformer(3, 6)
    >>> idle = cc.TrainConfig.joint(60, learning_rate=1e-9, batch_size=64, warm_start=None)
    >>> training_health(cc.train(model, task, idle), task).verdict
    'plateau'
    """
    losses = record.losses.numpy()
    tenths = np.array_split(losses, 10) if len(losses) >= SHORTEST else [losses[:1], losses, losses[-1:]]
    means = np.array([tenth.mean() if len(tenth) else 0.0 for tenth in tenths])
    ends = float(means[0]), float(means.min()), float(means[-1])
    if not np.isfinite(losses).all():
        return TrainingHealth("diverges", *ends, ADVICE["non-finite"])
    if losses.min(initial=0.0) < -ROUNDING:
        raise ValueError(
            f"losses must be cross-entropies, in nats and at least 0: got {losses.min():.3g}; change the sign of "
            "log-likelihoods"
        )
    verdict = _of_curve(losses, tenths, means)
    is_far = task is not None and ends[2] > FAR * np.log(task.d_vocab)
    if ends[2] > LARGEST or (is_far and (verdict != "falls" or ends[2] > losses[0])):  # a bad start may yet fall
        return TrainingHealth("diverges", *ends, ADVICE["far above"])
    if isinstance(task, InContextTask) and verdict in ("falls", "plateau", "converged"):
        has_fallen, is_level = verdict == "falls", not _above(tenths, 7, 9)
        found = _against_lines(record, task, model, ends[2], has_fallen, is_level)
        if found is not None:
            return TrainingHealth(found[0], *ends, found[1])
    return TrainingHealth(verdict, *ends, ADVICE[verdict])


def _of_curve(losses: np.ndarray, tenths: Sequence[np.ndarray], means: np.ndarray) -> Verdict:
    if len(losses) < SHORTEST:
        return "too short"
    if _above(tenths, 9, 0):
        return "diverges"
    if _above(tenths, 9, int(means.argmin())):
        return "rises"
    falls_at_once = losses[0] - means[9] > max(CLEAR * tenths[9].std(ddof=1), SHARE * abs(means[9]))
    if _above(tenths, 0, 9) or falls_at_once:
        return "falls"
    return "converged" if means[9] <= ROUNDING else "plateau"


def _above(tenths: Sequence[np.ndarray], a: int, b: int) -> bool:
    """Whether the loss of one tenth lies clearly above that of another."""
    errors = [tenths[i].std(ddof=1) / len(tenths[i]) ** 0.5 for i in (a, b)]
    difference = tenths[a].mean() - tenths[b].mean()
    return bool(difference > max(CLEAR * np.hypot(*errors), SHARE * abs(tenths[b].mean())))


def _against_lines(
    record: TrainingRecord,
    task: InContextTask,
    model: HookedTransformer | None,
    last: float,
    has_fallen: bool,
    is_level: bool,
) -> tuple[Verdict, str] | None:
    """A verdict and its advice, where the loss is at a line of the task that means something."""
    batch = task.sample(N_SEQUENCES, seed=(0, 11))
    posterior, frequencies, uniform = task.bayes_loss(batch), best_unigram_loss(batch), float(np.log(task.d_vocab))
    gap = frequencies - posterior
    attention = _final_attention(record, task, batch, model)
    cells = attention_cells(task.graph)
    is_low = last <= posterior + min(NEAR_NATS, gap / 2)
    if attention is not None and cells and is_low:
        formed = sum(float(attention[:, child, parent].max()) >= FORMED for child, parent in cells)
        if 2 * formed < len(cells):
            return "no graph", (
                f"the loss is as low as the edge posterior's with {formed} of {len(cells)} edges in layer 0's "
                "attention: predicting well needs no graph here (one fixed transition matrix is learned by heart), or "
                "another circuit does it; draw a matrix for each sequence, or train with TrainConfig's default stages"
            )
    if is_low and not has_fallen:
        return "converged", ADVICE["converged"]
    at_unigram = abs(last - frequencies) <= NEAR * gap and abs(last - frequencies) < abs(last - uniform)
    return ("unigram", ADVICE["unigram"]) if is_level and at_unigram else None


@torch.no_grad()
def _final_attention(
    record: TrainingRecord, task: InContextTask, batch: Batch, model: HookedTransformer | None
) -> Float[Tensor, "head_index query_pos key_pos"] | None:
    """Layer 0's mean attention after the last step, or None if it was not recorded."""
    if model is not None:
        check_model(model, task.d_vocab, task.n_ctx)
        with watch_attention(model, layers=[0]) as watched:
            log_probs(model, batch.tokens.to(model.W_U.device))
        return watched.attention()[0][[head for layer, head in live_heads(model) if layer == 0]]
    if record.attention is None or 0 not in record.layers or record.steps[-1:] != (len(record.losses),):
        return None
    if record.attention.shape[-1] != task.n_ctx:
        raise ValueError(
            f"record and task must cover the same positions: {record.attention.shape[-1]} against {task.n_ctx}"
        )
    return record.attention[-1, record.layers.index(0)]
