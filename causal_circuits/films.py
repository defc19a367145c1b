"""What can be watched while a model trains: the heads on one sequence, and the distance to named predictors.

Both are given to ``train(..., on_record=film)`` and called at every recorded step; `result` is what they saw. Neither
changes the model. With a folder, what is seen is kept there too: a run that goes on from a checkpoint has all of it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Frame, Result, frame
from causal_circuits.models import HookedTransformer, attachments, check_forward, live_heads, log_probs
from causal_circuits.recording import watch_attention
from causal_circuits.storage import read_tensors, tensor_bytes, write_files
from causal_circuits.tasks import Batch, InContextTask, edge_posterior, unigram
from causal_circuits.tasks.batch import check_tokens
from causal_circuits.tasks.predictors import PSEUDO_COUNTS


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class SequenceAttention(Result):
    """The attention of every head on one sequence, at one state of a model or at several.

    Attributes:
        tokens: the sequence.
        steps: of training, one a state.
        heads: (layer, head) of each.
        attention: [state, head, query_pos, key_pos].
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> seen = cc.films.sequence_attention(model, task.sample(1, seed=0).tokens[0])
    >>> seen.heads, tuple(seen.attention.shape)
    (((0, 0), (1, 0)), (1, 2, 6, 6))
    """

    tokens: Int[Tensor, " n_ctx"]
    steps: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    attention: Float[Tensor, "state head query_pos key_pos"]
    attached: tuple[str, ...] = ()


@check_arguments
@torch.no_grad()
def sequence_attention(model: HookedTransformer, tokens: Int[Tensor, " n_ctx"], step: int = 0) -> SequenceAttention:
    """The attention of every live head of any HookedTransformer on one sequence; float32, on the CPU.

    >>> seen = sequence_attention(cc.plant_circuit(cc.chain_graph(4), d_vocab=3), torch.tensor([0, 1, 2, 1]))
    >>> seen.heads, seen.attention[0, 0, 2].round().tolist()          # position 2 attends to its parent, 1
    (((0, 0), (1, 0)), [0.0, 1.0, 0.0, 0.0])
    """
    check_tokens(tokens[None], model.cfg.d_vocab)
    check_forward(model, tokens[None])
    heads = tuple(live_heads(model))
    with watch_attention(model) as watched:
        log_probs(model, tokens[None].to(model.W_U.device))
    pattern = watched.attention().float().cpu()
    shown = torch.stack([pattern[at] for at in heads])[None]
    return SequenceAttention(tokens, (step,), heads, shown, attachments(model))


@check_arguments
class SequenceRecorder:
    """The heads on one sequence at every recorded step: ``train(model, task, on_record=film)``, then `result`.

    Args:
        tokens: [n_ctx], the sequence.
        folder: where to keep what is seen; this film's own.

    >>> task = cc.InContextTask(cc.chain_graph(4), d_vocab=3)
    >>> film = SequenceRecorder(task.sample(1, seed=1).tokens[0])
    >>> model, config = cc.disentangled_transformer(3, 4), cc.TrainConfig.joint(8, batch_size=4)
    >>> record = cc.train(model, task, config, on_record=film)
    >>> film.result().steps == record.steps
    True
    """

    def __init__(self, tokens: Int[Tensor, " n_ctx"], folder: str | os.PathLike[str] | None = None) -> None:
        self._tokens = tokens
        self._frames = _Frames(folder, {"attention", "heads"})

    def __call__(self, step: int, model: HookedTransformer) -> None:
        """Look at the model."""
        seen = sequence_attention(model, self._tokens, step)
        self._frames.keep(step, {"attention": seen.attention[0], "heads": torch.tensor(seen.heads)})

    def result(self, steps: Sequence[int] | None = None) -> SequenceAttention:
        """What was seen, in the order of steps: all of it, or at some steps."""
        chosen, seen = self._frames.at(steps)
        heads = tuple((int(layer), int(head)) for layer, head in seen["heads"][0])
        return SequenceAttention(self._tokens, chosen, heads, seen["attention"])


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class PredictorDistances(Result):
    """How far a model was from named predictors at each recorded step.

    Attributes:
        steps: of training.
        names: of the predictors.
        divergence: float64 [state, predictor]; mean KL(predictor || model) over sequences, nats.

    >>> film = cc.films.PredictorRecorder(batch, cc.films.named_predictors(task, batch))
    >>> film(0, cc.disentangled_transformer(3, 6))
    >>> found = film.result()
    >>> found.steps, tuple(found.divergence.shape), round(float(found.divergence[0, 0]), 6)  # untrained: uniform
    ((0,), (1, 3), 0.0)
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    divergence: Float[Tensor, "state predictor"]

    def to_frame(self) -> Frame:
        """A row a state: its step, and the divergence from each predictor."""
        return frame({**dict(zip(self.names, self.divergence.numpy().T, strict=True)), "step": self.steps})

    @property
    def nearest(self) -> tuple[str, ...]:
        """The predictor that the model was nearest to, at each step.

        Raises:
            ValueError: a divergence is NaN: the model was non-finite.
        """
        lost = self.divergence.isnan().any(dim=1).nonzero()
        if len(lost):
            raise ValueError(f"no predictor is nearest where divergences are NaN: at step {self.steps[int(lost[0])]}")
        return tuple(self.names[int(place)] for place in self.divergence.argmin(dim=1))


@check_arguments
class PredictorRecorder:
    """KL from named predictors at every recorded step: ``train(model, task, on_record=film)``, then `result`.

    Args:
        batch: the sequences on which model and predictors are compared; a thousand will do. With targets after every
            position the divergence is the mean over positions, too.
        predictors: name -> probabilities, of the shape of the targets; `named_predictors(task, batch)` makes the usual
            ones, `tasks.next_token_predictors` those after every position.
        folder: where to keep what is seen; this film's own.

    >>> film = cc.films.PredictorRecorder(batch, cc.films.named_predictors(task, batch))
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=16)
    >>> record = cc.train(model, task, config, on_record=film)
    >>> film.result().steps == record.steps
    True
    """

    def __init__(
        self,
        batch: Batch,
        predictors: Mapping[str, Float[Tensor, "batch *positions d_vocab"]],
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if not predictors:
            raise ValueError("at least one predictor is needed to measure a distance from: got none")
        for name, probs in predictors.items():
            if probs.shape != batch.target_probs.shape:
                raise ValueError(
                    f"predictor {name!r} must give one row for each sequence, {list(batch.target_probs.shape)}: "
                    f"got {list(probs.shape)}"
                )
        self._batch, self._predictors = batch, {name: probs.double() for name, probs in predictors.items()}
        self._frames = _Frames(folder, {"divergence"})

    @torch.no_grad()
    def __call__(self, step: int, model: HookedTransformer) -> None:
        """Measure the model."""
        tokens = self._batch.tokens.to(model.W_U.device)
        predicted = log_probs(model, tokens, self._batch.every_position).double().cpu()
        divergence = torch.stack([_mean_divergence(probs, predicted) for probs in self._predictors.values()])
        self._frames.keep(step, {"divergence": divergence})

    def result(self, steps: Sequence[int] | None = None) -> PredictorDistances:
        """What was measured, in the order of steps: all of it, or at some steps."""
        chosen, seen = self._frames.at(steps)
        return PredictorDistances(chosen, tuple(self._predictors), seen["divergence"])


@check_arguments
def named_predictors(task: InContextTask, batch: Batch) -> dict[str, Float[Tensor, "batch d_vocab"]]:
    """Uniform, the best smoothed unigram of the context, and the edge posterior: the phases of the usual training.

    >>> task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
    >>> list(named_predictors(task, task.sample(8)))
    ['uniform', 'best unigram', 'edge posterior']
    """
    d_vocab = task.d_vocab
    smoothed = [unigram(batch.tokens, d_vocab, float(pseudo_count)) for pseudo_count in PSEUDO_COUNTS]
    losses = [float(-(batch.target_probs.double() * probs.log()).sum(dim=1).mean()) for probs in smoothed]
    return {
        "uniform": torch.full((len(batch), d_vocab), 1 / d_vocab, dtype=torch.float64),
        "best unigram": smoothed[int(np.argmin(losses))],
        "edge posterior": edge_posterior(task, batch.tokens),
    }


def _mean_divergence(probs: Tensor, log_predicted: Tensor) -> Tensor:
    """Mean KL(probs || predicted) over sequences and positions; 0 log 0 is 0."""
    return (torch.special.xlogy(probs, probs) - probs * log_predicted).sum(dim=-1).mean()


class _Frames:
    """Some tensors a step, in memory and, with a folder, in files; `names` are theirs."""

    def __init__(self, folder: str | os.PathLike[str] | None, names: set[str]) -> None:
        self._folder = None if folder is None else Path(folder)
        files = [] if self._folder is None else sorted(self._folder.glob("step_*.safetensors"))
        self._seen = {int(file.stem.removeprefix("step_")): read_tensors(file) for file in files}
        if any(seen.keys() != names for seen in self._seen.values()):
            raise ValueError(f"{self._folder} holds states of another film: name a folder of its own, or delete it")

    def keep(self, step: int, seen: dict[str, Tensor]) -> None:
        self._seen[step] = seen
        if self._folder is not None:
            write_files(self._folder, {f"step_{step:09d}.safetensors": tensor_bytes(seen)})

    def at(self, steps: Sequence[int] | None) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        if not self._seen:
            raise ValueError("this film has seen no step: pass it to train(..., on_record=film) first")
        chosen = tuple(sorted(self._seen) if steps is None else steps)
        missing = [step for step in chosen if step not in self._seen]
        if missing:
            raise ValueError(f"this film has not seen step {missing[0]}: it saw {sorted(self._seen)}")
        names = self._seen[chosen[0]]
        return chosen, {name: torch.stack([self._seen[step][name] for step in chosen]) for name in names}
