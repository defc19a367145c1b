"""Ablate heads: put zeros, a mean, another sequence's or another position's output in place of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.interventions.measure import (
    check_hooks,
    check_input,
    other_positions,
    other_sequences,
    predictions,
    standard_error,
)
from causal_circuits.interventions.metrics import Metric, make_cost
from causal_circuits.models import HookedTransformer, attachments, check_head, log_probs
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.batch import chunks

AblationMethod = Literal["zero", "mean", "resample", "permute"]
ABLATION_METHODS: tuple[AblationMethod, ...] = get_args(AblationMethod)
_Sites = Mapping[str, Sequence[int]]  # hook name -> the heads to overwrite
_Source = Callable[[str, Tensor, slice], Tensor]  # hook name, its activation, rows of the batch -> what to write


@check_arguments
@dataclass(frozen=True, repr=False)
class AblationResult(Result):
    """The loss (or another metric) with some heads ablated, against the untouched model on the same sequences.

    Attributes:
        heads: (layer, head) pairs that were ablated together.
        method: "zero", "mean", "resample" or "permute".
        loss, baseline_loss: mean of the metric with and without the ablation; cross-entropy in nats by default.
        standard_error: of their paired difference.
        metric: what was measured.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> result = AblationResult(((0, 0),), "mean", loss=1.0, baseline_loss=0.5, standard_error=0.01)
    >>> result.share_of_gain_lost(reference_loss=1.5)
    0.5
    """

    heads: tuple[tuple[int, int], ...]
    method: AblationMethod
    loss: float
    baseline_loss: float
    standard_error: float
    metric: str = "loss"
    attached: tuple[str, ...] = ()

    def share_of_gain_lost(self, reference_loss: float) -> float:
        """The loss increase as a share of the gain, reference loss minus baseline loss; NaN without a gain."""
        gain = reference_loss - self.baseline_loss
        return (self.loss - self.baseline_loss) / gain if gain > 0 else float("nan")


@check_arguments
@torch.no_grad()
def ablate_heads(
    model: HookedTransformer,
    batch: Batch,
    heads: Sequence[tuple[int, int]],
    method: AblationMethod = "mean",
    *,
    metric: Metric = "loss",
    task: Task | None = None,
    seed: int = 0,
) -> AblationResult:
    """Replace what heads write (``hook_z``) and measure the loss.

    Args:
        model: any HookedTransformer.
        batch: sequences and targets.
        heads: (layer, head) pairs, ablated together.
        method: "zero"; "mean": each head's own output averaged over the batch, position by position;
            "resample": its output on another sequence of the batch; "permute": its output at another position of the
            same sequence.
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        task: what the metric "kl_to_posterior" needs.
        seed: of resampling and permuting.

    >>> result = cc.ablate_heads(model, batch, [(0, 0)], method="resample")
    >>> result.loss - result.baseline_loss > 2 * result.standard_error
    True
    """
    check_input(model, batch)
    if not heads:
        raise ValueError("ablate_heads needs at least one (layer, head): got none")
    sites: dict[str, list[int]] = {}
    for layer, head in heads:
        check_head(model, layer, head)
        sites.setdefault(f"blocks.{layer}.attn.hook_z", []).append(head)
    check_hooks(model, list(sites))
    cost = make_cost(metric, batch, model=model, task=task)
    source = _source(model, batch.tokens, sites, method, seed)
    before, after = cost(predictions(model, batch.tokens)), cost(_with_replaced(model, batch.tokens, sites, source))
    return AblationResult(
        heads=tuple(heads),
        method=method,
        loss=float(cost.sign * after.mean()),
        baseline_loss=float(cost.sign * before.mean()),
        standard_error=standard_error(after - before),
        metric=cost.name,
        attached=attachments(model),
    )


def _with_replaced(
    model: HookedTransformer, tokens: Tensor, sites: _Sites, source: _Source
) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities with something else written by some heads."""

    def overwrite(activation: Tensor, hook: object, name: str, rows: slice) -> Tensor:
        written, activation = source(name, activation, rows), activation.clone()
        activation[:, :, sites[name]] = written[:, :, sites[name]].to(activation.dtype)  # autocast has its own
        return activation

    found = []
    for rows in chunks(len(tokens)):
        with model.hooks(fwd_hooks=[(name, partial(overwrite, name=name, rows=rows)) for name in sites]):
            found.append(log_probs(model, tokens[rows]))
    return torch.cat(found)


def _source(model: HookedTransformer, tokens: Tensor, sites: _Sites, method: AblationMethod, seed: int) -> _Source:
    """What to write in place of an activation [batch, pos, ...]."""
    if method == "zero":
        return lambda name, activation, rows: torch.zeros_like(activation)
    if method == "permute":
        positions = other_positions(len(tokens), tokens.shape[1], seed).to(tokens.device)
        sequences = torch.arange(len(tokens), device=tokens.device)[:, None]
        return lambda name, activation, rows: activation[sequences[: len(activation)], positions[rows]]
    if method == "resample":
        others, own = other_sequences(len(tokens), seed).to(tokens.device), _activations(model, tokens, sites)
        return lambda name, activation, rows: own[name][others[rows]]
    means = _means(model, tokens, sites)
    return lambda name, activation, rows: means[name].expand_as(activation)


def _activations(model: HookedTransformer, tokens: Tensor, sites: _Sites) -> dict[str, Tensor]:
    caches = [model.run_with_cache(tokens[rows], names_filter=list(sites))[1] for rows in chunks(len(tokens))]
    return {name: torch.cat([cache[name] for cache in caches]) for name in sites}


def _means(model: HookedTransformer, tokens: Tensor, sites: _Sites) -> dict[str, Tensor]:
    """The mean of each activation over sequences; no more than a piece of them is held."""
    sums: dict[str, Tensor] = {}
    for rows in chunks(len(tokens)):
        for name, own in _activations(model, tokens[rows], sites).items():
            sums[name] = sums.get(name, 0.0) + own.double().sum(dim=0)
    return {name: (total / len(tokens)).to(model.W_U.dtype) for name, total in sums.items()}
