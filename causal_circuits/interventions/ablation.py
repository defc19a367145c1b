"""Ablate heads or residual slots: put zeros, a mean, another sequence's or another position's value in their place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.interventions.measure import (
    check_hooks,
    check_input,
    chunks,
    other_positions,
    other_sequences,
    predictions,
    standard_error,
)
from causal_circuits.interventions.metrics import Metric, make_cost
from causal_circuits.models import HookedTransformer, attachments, check_head, log_probs, slots
from causal_circuits.tasks import Batch, Task

AblationMethod = Literal["zero", "mean", "resample", "permute"]
ABLATION_METHODS: tuple[AblationMethod, ...] = get_args(AblationMethod)
_Sites = Mapping[str, Sequence[int | slice]]  # hook name -> what to overwrite on its third axis
_Source = Callable[[str, Tensor, slice], Tensor]  # hook name, its activation, rows of the batch -> what to write


@check_arguments
@dataclass(frozen=True, repr=False)
class AblationResult(Result):
    """The loss (or another metric) with some heads or slots ablated, against the untouched model on the same sequences.

    Attributes:
        heads: (layer, head) pairs that were ablated together; empty where slots were.
        method: "zero", "mean", "resample" or "permute".
        loss, baseline_loss: mean of the metric with and without the ablation; cross-entropy in nats by default.
        standard_error: of their paired difference.
        slots: the residual slots that were ablated together.
        metric: what was measured.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words: it was
            analysed with it.

    >>> result = AblationResult(((0, 0),), "mean", loss=1.0, baseline_loss=0.5, standard_error=0.01)
    >>> result.share_of_gain_lost(reference_loss=1.5)
    0.5
    """

    heads: tuple[tuple[int, int], ...]
    method: AblationMethod
    loss: float
    baseline_loss: float
    standard_error: float
    slots: tuple[str, ...] = ()
    metric: str = "loss"
    attached: tuple[str, ...] = ()

    def share_of_gain_lost(self, reference_loss: float) -> float:
        """The loss increase as a share of the gain, reference loss minus baseline loss; NaN without a gain."""
        gain = reference_loss - self.baseline_loss
        return (self.loss - self.baseline_loss) / gain if gain > 0 else float("nan")


@check_arguments
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
    return _ablated(model, batch, sites, method, metric, task, seed, heads=tuple(heads))


@check_arguments
def ablate_slots(
    model: HookedTransformer,
    batch: Batch,
    names: Sequence[str],
    method: AblationMethod = "mean",
    *,
    layer: int = 0,
    metric: Metric = "loss",
    task: Task | None = None,
    seed: int = 0,
) -> AblationResult:
    """Replace residual slots where layer `layer` begins to read them, for it and every later reader.

    ``ablate_slots(model, batch, ["position"], "permute")`` gives every position the name of another one: the
    counterfactual that clean and corrupted *tokens* can never be, since both have the same positions.

    Args:
        model: one of ours.
        batch: sequences and targets.
        names: of slots (`slots(model)`), ablated together.
        method: "zero"; "mean": over sequences *and positions* (over sequences alone a position's name is its own mean);
            "resample": another sequence's; "permute": another position's.
        layer: 0 .. n_layers; n_layers is the final residual stream, which the read-out reads.
        metric, task, seed: as in `ablate_heads`.

    >>> result = cc.interventions.ablate_slots(model, batch, ["position"], "permute")
    >>> result.slots, result.loss > result.baseline_loss
    (('position',), True)
    """
    check_input(model, batch)
    known, n_layers = slots(model), model.cfg.n_layers
    if not names:
        raise ValueError(f"ablate_slots needs at least one slot: got none; the model has {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"no slot {name!r} in this model; it has {', '.join(known)}")
    if not 0 <= layer <= n_layers:
        raise ValueError(f"layer must lie in 0 .. {n_layers} ({n_layers} is the final residual stream): got {layer}")
    hook = f"blocks.{layer}.hook_resid_pre" if layer < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"
    sites = {hook: [known[name].slice for name in names]}
    return _ablated(model, batch, sites, method, metric, task, seed, slots=tuple(names))


@torch.no_grad()
def _ablated(
    model: HookedTransformer,
    batch: Batch,
    sites: _Sites,
    method: AblationMethod,
    metric: Metric,
    task: Task | None,
    seed: int,
    *,
    heads: tuple[tuple[int, int], ...] = (),
    slots: tuple[str, ...] = (),
) -> AblationResult:
    check_hooks(model, list(sites))
    cost = make_cost(metric, batch, model=model, task=task)
    source = _source(model, batch.tokens, sites, method, seed)
    before, after = cost(predictions(model, batch.tokens)), cost(_with_replaced(model, batch.tokens, sites, source))
    return AblationResult(
        heads=heads,
        method=method,
        loss=float(cost.sign * after.mean()),
        baseline_loss=float(cost.sign * before.mean()),
        standard_error=standard_error(after - before),
        slots=slots,
        metric=cost.name,
        attached=attachments(model),
    )


def _with_replaced(
    model: HookedTransformer, tokens: Tensor, sites: _Sites, source: _Source
) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities with something else written at some sites."""

    def overwrite(activation: Tensor, hook: object, name: str, rows: slice) -> Tensor:
        written, activation = source(name, activation, rows), activation.clone()
        for where in sites[name]:
            activation[:, :, where] = written[:, :, where]
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
    """The mean of each activation over sequences; of the residual stream over positions too."""
    axes = {name: "batch pos ... -> " + ("1 pos ..." if name.endswith("hook_z") else "1 1 ...") for name in sites}
    shares = [
        {name: reduce(own.double(), axes[name], "mean") * len(own) / len(tokens) for name, own in some.items()}
        for some in (_activations(model, tokens[rows], sites) for rows in chunks(len(tokens)))
    ]
    return {name: torch.stack([share[name] for share in shares]).sum(dim=0).to(model.W_U.dtype) for name in sites}
