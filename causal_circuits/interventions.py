"""Break a model on purpose and see what its loss says: ablation, edge knock-out, activation patching.

Every function gives the model back as it was - hooks, weights, gradients - also after an exception, and works
on any HookedTransformer whose prediction is read at the last position. Effects are losses in nats, paired
sequence by sequence with the untouched run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.models import HookedTransformer, check_head, check_model, live_heads, log_probs
from causal_circuits.tasks import Batch

AblationMethod = Literal["zero", "mean", "resample"]
ABLATION_METHODS: tuple[AblationMethod, ...] = ("zero", "mean", "resample")
KnockOutMethod = Literal["zero", "renormalize"]
_CHUNK = 2048


@dataclass(frozen=True)
class AblationResult:
    """The loss with some heads ablated, against the untouched model on the same sequences.

    Attributes:
        heads: (layer, head) pairs that were ablated together.
        method: "zero", "mean" or "resample".
        loss, baseline_loss: mean cross-entropy with and without the ablation, nats.
        standard_error: of their paired difference.
    """

    heads: tuple[tuple[int, int], ...]
    method: AblationMethod
    loss: float
    baseline_loss: float
    standard_error: float

    def share_of_gain_lost(self, reference_loss: float) -> float:
        """The loss increase as a share of the gain, reference loss minus baseline loss; NaN without a gain."""
        gain = reference_loss - self.baseline_loss
        return (self.loss - self.baseline_loss) / gain if gain > 0 else float("nan")


@torch.no_grad()
def ablate_heads(
    model: HookedTransformer,
    batch: Batch,
    heads: Sequence[tuple[int, int]],
    method: AblationMethod = "mean",
    *,
    seed: int = 0,
) -> AblationResult:
    """Replace what heads write (``hook_z``) and measure the loss.

    Args:
        model: any HookedTransformer.
        batch: sequences and targets.
        heads: (layer, head) pairs, ablated together.
        method: "zero"; "mean": each head's own output averaged over the batch, position by position;
            "resample": its output on another sequence of the batch.
        seed: of the resampling.
    """
    _check(model, batch)
    heads = tuple((int(layer), int(head)) for layer, head in heads)
    if not heads:
        raise ValueError("ablate_heads needs at least one (layer, head): got none")
    for layer, head in heads:
        check_head(model, layer, head)
    if method not in ABLATION_METHODS:
        raise ValueError(f"method must be one of {', '.join(ABLATION_METHODS)}: got {method!r}")
    if method == "resample" and len(batch) < 2:
        raise ValueError("resample ablation needs at least 2 sequences to take another one's output: got 1")
    names = sorted({f"blocks.{layer}.attn.hook_z" for layer, _ in heads})
    source = _ablation_source(model, batch.tokens, names, method, seed)
    baseline, losses = [], []
    for start in range(0, len(batch), _CHUNK):
        piece, rows = batch[start : start + _CHUNK], slice(start, start + _CHUNK)

        def overwrite(z: Tensor, hook: Any, rows: slice = rows) -> Tensor:
            z = z.clone()
            for layer, head in heads:
                if layer == hook.layer():
                    replacement = source[f"blocks.{layer}.attn.hook_z"]
                    z[:, :, head] = (replacement[rows] if method == "resample" else replacement)[:, :, head]
            return z

        baseline.append(_losses(model, piece))
        with model.hooks(fwd_hooks=[(name, overwrite) for name in names]):
            losses.append(_losses(model, piece))
    before, after = torch.cat(baseline), torch.cat(losses)
    return AblationResult(heads, method, float(after.mean()), float(before.mean()), _standard_error(after - before))


def _ablation_source(
    model: HookedTransformer, tokens: Tensor, names: Sequence[str], method: AblationMethod, seed: int
) -> dict[str, Float[Tensor, "batch pos head_index d_head"]]:
    """What to write in place of z: zeros, the batch mean (both with one row), or another sequence's z."""
    if method == "zero":
        return {
            name: torch.zeros(1, 1, model.cfg.n_heads, 1, dtype=model.W_U.dtype, device=model.W_U.device)
            for name in names
        }
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(tokens), _CHUNK):
        _, cache = model.run_with_cache(tokens[start : start + _CHUNK], names_filter=list(names))
        for name in names:
            z = cache[name]
            kept[name].append(z if method == "resample" else z.double().sum(dim=0, keepdim=True))
    if method == "resample":
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
        donor = torch.empty_like(order)
        donor[order] = order.roll(1)  # a cycle through the batch: nobody is their own donor
        return {name: torch.cat(pieces)[donor] for name, pieces in kept.items()}
    return {
        name: (torch.cat(pieces).sum(dim=0, keepdim=True) / len(tokens)).to(model.W_U.dtype)
        for name, pieces in kept.items()
    }


@dataclass(frozen=True)
class KnockOut:
    """What cutting single attention entries does to the loss.

    Attributes:
        layer: the layer whose pattern was cut.
        effect: [head_index, query_pos, key_pos]; loss with the entry cut minus loss without, nats (positive: the
            entry was of use); NaN where nothing was cut.
        standard_error: of each effect, over sequences.
        attention: the pattern averaged over the same sequences.
        baseline_loss: of the untouched model.
    """

    layer: int
    effect: Float[Tensor, "head_index query_pos key_pos"]
    standard_error: Float[Tensor, "head_index query_pos key_pos"]
    attention: Float[Tensor, "head_index query_pos key_pos"]
    baseline_loss: float


@torch.no_grad()
def knock_out_edges(
    model: HookedTransformer,
    batch: Batch,
    *,
    layer: int = 0,
    entries: Sequence[tuple[int, int, int]] | None = None,
    method: KnockOutMethod = "zero",
    copies: int = 8192,
) -> KnockOut:
    """Cut single attention entries, one at a time, and measure the loss: all of them in a few batched passes.

    Args:
        model: any HookedTransformer.
        batch: sequences and targets; a thousand sequences give effects to about 0.01 nats.
        layer: whose pattern is cut.
        entries: (head, query_pos, key_pos) triples; None takes every causal entry of every live head.
        method: "zero" cuts the entry and leaves the rest of its row; "renormalize" gives its weight to the rest.
        copies: sequences times entries that are run at once (memory grows with it).
    """
    if method not in ("zero", "renormalize"):
        raise ValueError(f"method must be 'zero' or 'renormalize': got {method!r}")
    _check(model, batch)
    if copies < 1:
        raise ValueError(f"copies must be at least 1: got {copies}; 8192 is the default")
    n_ctx = batch.tokens.shape[1]
    heads = [head for at, head in live_heads(model) if at == layer]
    if not heads:
        raise ValueError(f"layer must be one of the model's {model.cfg.n_layers} layers: got {layer}")
    if entries is None:
        entries = [(head, i, j) for head in heads for i in range(n_ctx) for j in range(i + 1)]
    entries = list(dict.fromkeys(entries))  # an entry named twice is cut once
    for head, i, j in entries:
        check_head(model, layer, head)
        if not 0 <= j <= i < n_ctx:
            raise ValueError(f"an attention entry (query, key) needs 0 <= key <= query < {n_ctx}: got ({i}, {j})")
    shape = (max(heads) + 1, n_ctx, n_ctx)
    total, squares = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
    for head, i, j in entries:
        total[head, i, j] = squares[head, i, j] = 0.0
    attention = torch.zeros(shape, dtype=torch.float64)
    baseline_total, width = 0.0, min(len(batch), copies)
    for start in range(0, len(batch), width):
        piece = batch[start : start + width]
        baseline, pattern = _losses_and_pattern(model, piece, layer)
        baseline_total += float(baseline.sum())
        attention += pattern[:, : shape[0]].double().sum(dim=0).cpu()
        per_pass = max(1, copies // len(piece))
        for first in range(0, len(entries), per_pass):
            some = entries[first : first + per_pass]
            effects = _losses_with_entries_cut(model, piece, layer, some, method) - baseline
            for (head, i, j), effect in zip(some, effects, strict=True):
                total[head, i, j] += float(effect.sum())
                squares[head, i, j] += float((effect**2).sum())
    n = len(batch)
    mean = total / n
    error = ((squares / n - mean**2).clamp(min=0) / max(n - 1, 1)).sqrt()
    return KnockOut(layer, mean.float(), error.float(), (attention / n).float(), baseline_total / n)


def _losses_with_entries_cut(
    model: HookedTransformer, batch: Batch, layer: int, entries: Sequence[tuple[int, int, int]], method: KnockOutMethod
) -> Float[Tensor, "entry batch"]:
    """One pass over a copy of the batch for each entry."""
    head, query, key = (torch.tensor(axis) for axis in zip(*entries, strict=True))
    which = torch.arange(len(entries))

    def cut(pattern: Tensor, hook: object) -> Tensor:
        copies = pattern.clone().view(len(entries), len(batch), *pattern.shape[1:])
        copies[which, :, head, query, key] = 0.0
        if method == "renormalize":
            rows = copies[which, :, head, query]
            copies[which, :, head, query] = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        return copies.view(pattern.shape)

    repeated = Batch(batch.tokens.repeat(len(entries), 1), batch.target_probs.repeat(len(entries), 1))
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", cut)]):
        return _losses(model, repeated).view(len(entries), len(batch))


def _losses_and_pattern(model: HookedTransformer, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: kept.append(pattern))]):
        losses = _losses(model, batch)
    return losses, kept[0]


@dataclass(frozen=True)
class PatchingResult:
    """Metrics of a corrupted run with activations of the clean run patched in.

    Attributes:
        names: the hook names, in the order of `metric`'s rows.
        metric: [name, pos], or [name, 1] when all positions were patched at once.
        clean, corrupted: the metric of the two untouched runs.
    """

    names: tuple[str, ...]
    metric: Float[Tensor, "name pos"]
    clean: float
    corrupted: float

    @property
    def recovered(self) -> Float[Tensor, "name pos"]:
        """The share of the way from corrupted (0) to clean (1)."""
        return (self.metric - self.corrupted) / (self.clean - self.corrupted)


@torch.no_grad()
def patch_activations(
    model: HookedTransformer,
    clean: Int[Tensor, "batch n_ctx"],
    corrupted: Int[Tensor, "batch n_ctx"],
    metric: Callable[[Float[Tensor, "batch d_vocab"]], Tensor | float],
    *,
    names: Sequence[str] | None = None,
    by_position: bool = True,
) -> PatchingResult:
    """Activation patching: run the corrupted sequences with one activation taken from the clean run.

    Args:
        model: any HookedTransformer.
        clean, corrupted: tokens, row by row the pairs.
        metric: log-probabilities at the last position -> a scalar.
        names: hooks whose activations have axes [batch, pos, ...]; the default is ``hook_resid_pre`` and the
            attention output ``hook_z`` of every layer.
        by_position: patch one position at a time; otherwise all at once.
    """
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean and corrupted must be pairs of equal shape: {list(clean.shape)}, {list(corrupted.shape)}"
        )
    if names is None:
        names = [
            f"blocks.{layer}.{what}"
            for layer in range(model.cfg.n_layers)
            for what in ("hook_resid_pre", "attn.hook_z")
        ]
    unknown = [name for name in names if name not in model.hook_dict]
    if unknown:
        raise ValueError(f"the model has no hook {unknown[0]!r}; it has {', '.join(model.hook_dict)}")
    _, cache = model.run_with_cache(clean, names_filter=list(names))
    positions: list[slice] = [slice(i, i + 1) for i in range(clean.shape[1])] if by_position else [slice(None)]

    def patched(name: str, where: slice) -> float:
        def take(activation: Tensor, hook: object) -> Tensor:
            activation = activation.clone()
            activation[:, where] = cache[name][:, where]
            return activation

        with model.hooks(fwd_hooks=[(name, take)]):
            return float(metric(log_probs(model, corrupted)))

    rows = [[patched(name, where) for where in positions] for name in names]
    return PatchingResult(
        names=tuple(names),
        metric=torch.tensor(rows),
        clean=float(metric(log_probs(model, clean))),
        corrupted=float(metric(log_probs(model, corrupted))),
    )


def _losses(model: HookedTransformer, batch: Batch) -> Float[Tensor, " batch"]:
    """Cross-entropy of every sequence, float64, with whatever hooks are attached."""
    return -(batch.target_probs * log_probs(model, batch.tokens)).sum(dim=-1).double()


def _check(model: HookedTransformer, batch: Batch) -> None:
    """Raise a ValueError unless the batch is sound and fits the model."""
    batch.check(model.cfg.d_vocab)
    check_model(model, batch.target_probs.shape[1], batch.tokens.shape[1])


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("inf")
