"""Patch one run into another: whole activations, or only what flows along one path.

*Activation patching* takes an activation from the clean run into the corrupted one; everything behind it changes.
*Path patching* (Wang et al. 2022, "Interpretability in the Wild", section 3.1) sends one sender's value along one path
and freezes everything off the path, so it tells which *reader* a head writes for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments, shown
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer, attachments, check_forward, check_model, live_heads, log_probs
from causal_circuits.tasks.batch import check_tokens

_BY_HEAD_FIRST = ("hook_pattern", "hook_attn_scores")
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
Score = Callable[[Float[Tensor, "batch d_vocab"]], Tensor | float]


@check_arguments
@dataclass(frozen=True, eq=False)
class PatchingResult:
    """Metrics of a corrupted run with activations of the clean run patched in.

    Attributes:
        names: the hook names, or the paths, in the order of `metric`'s rows.
        metric: [name, pos], or [name, 1] when all positions were patched at once.
        clean, corrupted: the metric of the two untouched runs.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words: it was
            analysed with it.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> clean, corrupted = task.sample(32, seed=0), task.sample(32, seed=1)
    >>> result = cc.patch_activations(
    ...     model, clean.tokens, corrupted.tokens, lambda log_probs: (clean.target_probs * log_probs).sum(1).mean()
    ... )
    >>> result.names[0], result.metric.shape == (len(result.names), 6)
    ('blocks.0.hook_resid_pre', True)
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

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> clean, corrupted = task.sample(32, seed=0), task.sample(32, seed=1)
    >>> def of_use(log_probs):
    ...     return (clean.target_probs * log_probs).sum(dim=1).mean()
    >>> result = cc.patch_activations(model, clean.tokens, corrupted.tokens, of_use, by_position=False)
    >>> round(float(result.metric[0, 0]) - result.clean, 4)  # everything that layer 0 reads is the clean run's
    0.0
    """
    _check_pairs(model, clean, corrupted)
    if names is None:
        names = [
            f"blocks.{layer}.{what}"
            for layer in range(model.cfg.n_layers)
            for what in ("hook_resid_pre", "attn.hook_z")
        ]
    check_hooks(model, list(names))
    for name in names:
        if name.endswith(_BY_HEAD_FIRST):
            raise ValueError(
                f"activations to patch have axes [batch, pos, ...]: {name} is [batch, head_index, query_pos, key_pos]; "
                "patch hook_z, or cut entries of the pattern with knock_out_edges"
            )
    _, cache = model.run_with_cache(clean, names_filter=list(names))
    for name in names:
        if name not in cache:
            raise ValueError(
                f"the model has the hook {name!r} and never calls it, so that nothing can be patched there: its config "
                "switches it off (use_attn_result, use_split_qkv_input, use_attn_in, attn_only); choose another"
            )
    positions: list[slice] = [slice(i, i + 1) for i in range(clean.shape[1])] if by_position else [slice(None)]

    def patched(name: str, where: slice) -> float:
        def take(activation: Tensor, hook: object) -> Tensor:
            activation = activation.clone()
            activation[:, where] = cache[name][:, where]
            return activation

        with model.hooks(fwd_hooks=[(name, take)]):
            return _scored(metric, log_probs(model, corrupted), name)

    rows = [[patched(name, where) for where in positions] for name in names]
    return PatchingResult(
        names=tuple(names),
        metric=torch.tensor(rows),
        clean=_scored(metric, log_probs(model, clean), "the clean run"),
        corrupted=_scored(metric, log_probs(model, corrupted), "the corrupted run"),
        attached=attachments(model),
    )


@check_arguments
@torch.no_grad()
def patch_paths(
    model: HookedTransformer,
    clean: Int[Tensor, "batch n_ctx"],
    corrupted: Int[Tensor, "batch n_ctx"],
    metric: Score,
    *,
    paths: Sequence[Sequence[str]] | None = None,
) -> PatchingResult:
    """Path patching: run the corrupted sequences, with the clean run's value sent along one path and nowhere else.

    Along a path (sender, reader, ..., "logits") the sender has its clean value; every head on the way is computed
    anew from what the path brings it and the corrupted rest; everything off the path stays corrupted.

    Args:
        model: any attention-only HookedTransformer.
        clean, corrupted: tokens, row by row the pairs.
        metric: log-probabilities at the last position -> a scalar.
        paths: each begins with "embed" or a head ("L0H0"), goes on through heads' inputs ("L1H0.k": the keys of head 0
            of layer 1) and ends with "logits"; the default is every path of two heads or fewer from the embedding.

    Returns:
        One row a path, named with arrows ("embed -> L0H0.v -> L1H0.k -> logits"). The model's settings for separate
        query, key and value inputs, which this needs, are given back as they were.

    >>> from causal_circuits import chain_graph, plant_circuit
    >>> model, generator = plant_circuit(chain_graph(6), d_vocab=3), torch.Generator().manual_seed(0)
    >>> clean, corrupted = torch.randint(3, (2, 64, 6), generator=generator)
    >>> paths = [("embed", "L0H0.v", "L1H0.k", "logits"), ("embed", "L0H0.k", "L1H0.k", "logits")]
    >>> result = patch_paths(model, clean, corrupted, lambda log_probs: log_probs[:, 0].mean(), paths=paths)
    >>> [abs(change) > 1e-4 for change in (result.metric[:, 0] - result.corrupted).tolist()]  # what, not where
    [True, False]
    """
    _check_pairs(model, clean, corrupted)
    if not model.cfg.attn_only:
        raise ValueError("patch_paths follows attention alone: this model has MLPs; use patch_activations")
    _check_path_patching(model)
    checked = [_checked_path(model, path) for path in (_default_paths(model) if paths is None else paths)]
    if not checked:
        raise ValueError("patch_paths needs at least one path: got none")
    with _separate_inputs(model):
        runs = [_Run(model, tokens) for tokens in (clean, corrupted)]
        rows = [[_scored(metric, _along(path, *runs), " -> ".join(path))] for path in checked]
    return PatchingResult(
        names=tuple(" -> ".join(path) for path in checked),
        metric=torch.tensor(rows),
        clean=_scored(metric, log_probs(model, clean), "the clean run"),
        corrupted=_scored(metric, log_probs(model, corrupted), "the corrupted run"),
        attached=attachments(model),
    )


class _Run:
    """A run of some tokens, with what each sender writes into the residual stream."""

    def __init__(self, model: HookedTransformer, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        z = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
        check_hooks(model, ["blocks.0.hook_resid_pre", *z, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"])
        ends = [f"blocks.{layer}.hook_resid_{end}" for layer in range(model.cfg.n_layers) for end in ("pre", "post")]
        _, self.cache = model.run_with_cache(tokens, names_filter=[*ends, *z])
        self._check_sum()

    def _check_sum(self) -> None:
        """Raise a ValueError unless each layer adds to the residual stream just what its heads write."""
        for layer, block in enumerate(self.model.blocks):
            heads = range(self.model.cfg.n_heads)
            written = sum(self.written(f"L{layer}H{head}") for head in heads) + block.attn.b_O
            added = self.cache[f"blocks.{layer}.hook_resid_post"] - self.cache[f"blocks.{layer}.hook_resid_pre"]
            left = self.cache[f"blocks.{layer}.hook_resid_post"]
            is_last = layer == self.model.cfg.n_layers - 1
            between = 0.0 if is_last else float((self.cache[f"blocks.{layer + 1}.hook_resid_pre"] - left).abs().max())
            off = max(float((added - written).abs().max()), between)
            size = max(1.0, float(added.abs().max()))
            if not off <= _ROUNDING.get(added.dtype, 0.1) * size:
                raise ValueError(
                    "patch_paths takes what a layer adds to the residual stream for the sum of its heads' z W_O: in "
                    f"layer {layer} the two differ by {off:.3g} (a hook behind hook_z or between layers, or a "
                    "normalisation after attention); use patch_activations"
                )

    def written(self, sender: str) -> Float[Tensor, "batch pos d_model"]:
        if sender == "embed":
            return self.cache["blocks.0.hook_resid_pre"]
        layer, head = _head(sender)
        return self.cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ self.model.W_O[layer, head]

    def head_output(self, reader: str, change: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """What a head writes when `change` is added to one of its inputs."""
        (layer, head), kind, kept = _head(reader), reader[-1], []

        def add(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[:, :, head] += change
            return value

        hooks = [
            (f"blocks.{layer}.hook_{kind}_input", add),
            (f"blocks.{layer}.attn.hook_z", lambda z, hook: kept.append(z[:, :, head])),
        ]
        with self.model.hooks(fwd_hooks=hooks):
            self.model(self.tokens, return_type=None)
        return kept[0] @ self.model.W_O[layer, head]

    def log_probs(self, change: Tensor) -> Float[Tensor, "batch d_vocab"]:
        """The prediction when `change` is added to the final residual stream."""
        name = f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"
        with self.model.hooks(fwd_hooks=[(name, lambda value, hook: value + change)]):
            return log_probs(self.model, self.tokens)


def _along(path: tuple[str, ...], clean: _Run, corrupted: _Run) -> Float[Tensor, "batch d_vocab"]:
    change = clean.written(path[0]) - corrupted.written(path[0])
    for reader in path[1:-1]:
        change = corrupted.head_output(reader, change) - corrupted.written(reader[:-2])
    return corrupted.log_probs(change)


def _check_path_patching(model: HookedTransformer) -> None:
    """Refuse what path patching would switch on, or would address wrongly."""
    if model.cfg.n_key_value_heads is not None:
        raise ValueError(
            f"patch_paths needs keys and values of their own for each head: this model shares them "
            f"(n_key_value_heads={model.cfg.n_key_value_heads}); use patch_activations"
        )
    if not model.cfg.use_split_qkv_input:
        for kind in "qkv":
            hooked = [at for at in attachments(model) if at.endswith(f"hook_{kind}_input")]
            if hooked:
                raise ValueError(
                    "patch_paths gives queries, keys and values inputs of their own, which would switch on the "
                    f"{hooked[0]} that this model does not call (use_split_qkv_input=False); remove it"
                )


@contextmanager
def _separate_inputs(model: HookedTransformer) -> Iterator[None]:
    """Within the context queries, keys and values have inputs of their own (`hook_q_input`, ...)."""
    before = model.cfg.use_split_qkv_input
    model.set_use_split_qkv_input(True)
    try:
        yield
    finally:
        model.set_use_split_qkv_input(before)


def _head(name: str) -> tuple[int, int]:
    """(layer, head) of "L1H0" or "L1H0.k"."""
    layer, _, head = name.split(".")[0].removeprefix("L").partition("H")
    return int(layer), int(head)


def _default_paths(model: HookedTransformer) -> list[tuple[str, ...]]:
    """Every path from the embedding to the logits through at most two heads."""
    heads = live_heads(model)
    inputs = [f"L{layer}H{head}.{kind}" for layer, head in heads for kind in "qkv"]
    pairs = [(first, second) for first in inputs for second in inputs if _head(first)[0] < _head(second)[0]]
    return [("embed", *middle, "logits") for middle in [(), *((one,) for one in inputs), *pairs]]


def _checked_path(model: HookedTransformer, path: Sequence[str]) -> tuple[str, ...]:
    """The path, or a ValueError that says what a path is made of."""
    heads = live_heads(model)
    senders = ["embed", *(f"L{layer}H{head}" for layer, head in heads)]
    readers = [f"L{layer}H{head}.{kind}" for layer, head in heads for kind in "qkv"]
    if isinstance(path, str) or len(path) < 2 or path[-1] != "logits":
        raise ValueError(f"a path is a sender, heads' inputs, and 'logits' at the end: got {path!r}")
    if path[0] not in senders:
        raise ValueError(f"no sender {path[0]!r} in this model; it has {', '.join(senders)}")
    for reader in path[1:-1]:
        if reader not in readers:
            raise ValueError(f"no node {reader!r} in this model; a path goes through {', '.join(readers)}")
    layers = [-1 if path[0] == "embed" else _head(path[0])[0], *(_head(reader)[0] for reader in path[1:-1])]
    if any(earlier >= later for earlier, later in pairwise(layers)):
        raise ValueError(f"a path goes through later and later layers: got {' -> '.join(path)}")
    return tuple(path)


def _check_pairs(model: HookedTransformer, clean: Tensor, corrupted: Tensor) -> None:
    """Raise a ValueError unless these are pairs of sequences that fit the model, and its weights are numbers."""
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean and corrupted must be pairs of equal shape: {list(clean.shape)}, {list(corrupted.shape)}"
        )
    if len(clean) == 0:
        raise ValueError("patching needs at least one pair of sequences: got an empty batch")
    for tokens in (clean, corrupted):
        check_tokens(tokens, model.cfg.d_vocab)
    check_model(model, model.cfg.d_vocab, clean.shape[1])
    check_forward(model, clean)


def _scored(metric: Score, predicted: Float[Tensor, "batch d_vocab"], where: str) -> float:
    """The metric of a run; a ValueError if it is not a number."""
    found = metric(predicted)
    if not isinstance(found, Real) and not (isinstance(found, Tensor) and found.numel() == 1):
        raise ValueError(f"metric must give one number for all sequences: got {shown(found)}; take their mean")
    value = float(found)
    if value != value:
        raise ValueError(
            f"the metric must be a number: it is NaN for {where}; check that it is defined for every prediction"
        )
    return value
