"""Cut single attention entries, one at a time, and measure what each costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.interventions.measure import check, sequence_losses
from causal_circuits.models import HookedTransformer, check_head, live_heads
from causal_circuits.tasks import Batch

KnockOutMethod = Literal["zero", "renormalize"]


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
    check(model, batch)
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
        return sequence_losses(model, repeated).view(len(entries), len(batch))


def _losses_and_pattern(model: HookedTransformer, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: kept.append(pattern))]):
        losses = sequence_losses(model, batch)
    return losses, kept[0]
