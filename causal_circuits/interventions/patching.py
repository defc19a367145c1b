"""Activation patching: a corrupted run with one activation taken from the clean run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.models import HookedTransformer, log_probs


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
