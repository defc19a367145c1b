"""Activation patching: take an activation from the clean run into the corrupted one; everything behind it changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments, shown
from causal_circuits.display import Result
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer, attachments, check_forward, check_model, log_probs
from causal_circuits.tasks.batch import check_tokens

_BY_HEAD_FIRST = ("hook_pattern", "hook_attn_scores")
Score = Callable[[Float[Tensor, "batch d_vocab"]], Tensor | float]


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class PatchingResult(Result):
    """Metrics of a corrupted run with activations of the clean run patched in.

    Attributes:
        names: the hook names, or the paths, in the order of `metric`'s rows.
        metric: [name, pos], or [name, 1] when all positions were patched at once.
        clean, corrupted: the metric of the two untouched runs.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> result = PatchingResult(("blocks.0.hook_resid_pre",), torch.tensor([[-0.5]]), clean=0.0, corrupted=-1.0)
    >>> result.recovered
    tensor([[0.5000]])
    """

    names: tuple[str, ...]
    metric: Float[Tensor, "name pos"]
    clean: float
    corrupted: float
    attached: tuple[str, ...] = ()

    @property
    def recovered(self) -> Float[Tensor, "name pos"]:
        """The share of the way from corrupted (0) to clean (1)."""
        return (self.metric - self.corrupted) / (self.clean - self.corrupted)


@check_arguments
@torch.no_grad()
def patch_activations(
    model: HookedTransformer,
    clean: Int[Tensor, "batch n_ctx"],
    corrupted: Int[Tensor, "batch n_ctx"],
    metric: Score,
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

    >>> clean, corrupted = task.sample(32, seed=0), task.sample(32, seed=1)
    >>> def of_use(log_probs):
    ...     return (clean.target_probs * log_probs).sum(dim=1).mean()
    >>> result = cc.patch_activations(model, clean.tokens, corrupted.tokens, of_use, by_position=False)
    >>> round(float(result.metric[0, 0]) - result.clean, 4)  # everything that layer 0 reads is the clean run's
    0.0
    """
    check_pairs(model, clean, corrupted)
    layers = range(model.cfg.n_layers)
    if names is None:
        names = [f"blocks.{layer}.{what}" for layer in layers for what in ("hook_resid_pre", "attn.hook_z")]
    check_hooks(model, list(names))
    _, cache = model.run_with_cache(clean, names_filter=list(names))
    for name in names:
        _check_activation(name, name in cache)
    positions = [slice(i, i + 1) for i in range(clean.shape[1])] if by_position else [slice(None)]

    def patched(name: str, where: slice) -> float:
        def take(activation: Tensor, hook: object) -> Tensor:
            activation = activation.clone()
            activation[:, where] = cache[name][:, where]
            return activation

        with model.hooks(fwd_hooks=[(name, take)]):
            return scored(metric, log_probs(model, corrupted), name)

    return PatchingResult(
        names=tuple(names),
        metric=torch.tensor([[patched(name, where) for where in positions] for name in names]),
        clean=scored(metric, log_probs(model, clean), "the clean run"),
        corrupted=scored(metric, log_probs(model, corrupted), "the corrupted run"),
        attached=attachments(model),
    )


def _check_activation(name: str, is_called: bool) -> None:
    """Raise a ValueError unless the hook is called, with an activation of axes [batch, pos, ...]."""
    if name.endswith(_BY_HEAD_FIRST):
        raise ValueError(
            f"activations to patch have axes [batch, pos, ...]: {name} is [batch, head_index, query_pos, key_pos]; "
            "patch hook_z, or cut entries of the pattern with knock_out_edges"
        )
    if not is_called:
        raise ValueError(
            f"the model has the hook {name!r} and never calls it, so that nothing can be patched there: its config "
            "switches it off (use_attn_result, use_split_qkv_input, use_attn_in, attn_only); choose another"
        )


def check_pairs(model: HookedTransformer, clean: Tensor, corrupted: Tensor) -> None:
    """Raise a ValueError unless these are pairs of sequences that fit the model, and its weights are finite."""
    if len(clean) == 0:
        raise ValueError("patching needs at least one pair of sequences: got an empty batch")
    for tokens in (clean, corrupted):
        check_tokens(tokens, model.cfg.d_vocab)
    check_model(model, model.cfg.d_vocab, clean.shape[1])
    check_forward(model, clean)


def scored(metric: Score, predicted: Float[Tensor, "batch d_vocab"], where: str) -> float:
    """The metric of a run; a ValueError if it is NaN."""
    found = metric(predicted)
    if not isinstance(found, Real) and not (isinstance(found, Tensor) and found.numel() == 1):
        raise ValueError(f"metric must give one number for all sequences: got {shown(found)}; take their mean")
    value = float(found)
    if value != value:
        raise ValueError(
            f"the metric must be a number: it is NaN for {where}; check that it is defined for every prediction"
        )
    return value
