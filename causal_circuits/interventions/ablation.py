"""Ablate heads: zero, mean or another sequence's output in place of what they write, and measure the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.interventions.measure import CHUNK, check, sequence_losses, standard_error
from causal_circuits.models import HookedTransformer, check_head
from causal_circuits.tasks import Batch

AblationMethod = Literal["zero", "mean", "resample"]
ABLATION_METHODS: tuple[AblationMethod, ...] = ("zero", "mean", "resample")


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
    check(model, batch)
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
    for start in range(0, len(batch), CHUNK):
        piece, rows = batch[start : start + CHUNK], slice(start, start + CHUNK)

        def overwrite(z: Tensor, hook: Any, rows: slice = rows) -> Tensor:
            z = z.clone()
            for layer, head in heads:
                if layer == hook.layer():
                    replacement = source[f"blocks.{layer}.attn.hook_z"]
                    z[:, :, head] = (replacement[rows] if method == "resample" else replacement)[:, :, head]
            return z

        baseline.append(sequence_losses(model, piece))
        with model.hooks(fwd_hooks=[(name, overwrite) for name in names]):
            losses.append(sequence_losses(model, piece))
    before, after = torch.cat(baseline), torch.cat(losses)
    return AblationResult(heads, method, float(after.mean()), float(before.mean()), standard_error(after - before))


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
    for start in range(0, len(tokens), CHUNK):
        _, cache = model.run_with_cache(tokens[start : start + CHUNK], names_filter=list(names))
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
