"""Path patching: send one sender's value along one path, with everything off the path frozen.

It tells which *reader* a head writes for (Wang et al. 2022, "Interpretability in the Wild", section 3.1).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import networkx as nx
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.interventions.patching import PatchingResult, Score, check_pairs, scored
from causal_circuits.models import HookedTransformer, attachments, live_heads, log_probs
from causal_circuits.models.layout import head_of

LOGITS = "logits"
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


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

    >>> model, generator = cc.plant_circuit(cc.chain_graph(6), d_vocab=3), torch.Generator().manual_seed(0)
    >>> clean, corrupted = torch.randint(3, (2, 64, 6), generator=generator)
    >>> paths = [("embed", "L0H0.v", "L1H0.k", "logits"), ("embed", "L0H0.k", "L1H0.k", "logits")]
    >>> result = patch_paths(model, clean, corrupted, lambda log_probs: log_probs[:, 0].mean(), paths=paths)
    >>> [abs(change) > 1e-4 for change in (result.metric[:, 0] - result.corrupted).tolist()]  # what, not where
    [True, False]
    """
    check_pairs(model, clean, corrupted)
    _check_path_patching(model)
    graph = _path_graph(model)
    if paths is None:
        paths = sorted(nx.all_simple_paths(graph, "embed", LOGITS, cutoff=3), key=len)
    if not paths:
        raise ValueError("patch_paths needs at least one path: got none")
    for path in paths:
        _check_path(graph, path)
    with _separate_inputs(model):
        runs = [_Run(model, tokens) for tokens in (clean, corrupted)]
        rows = [[scored(metric, _along(path, *runs), " -> ".join(path))] for path in paths]
    return PatchingResult(
        names=tuple(" -> ".join(path) for path in paths),
        metric=torch.tensor(rows),
        clean=scored(metric, log_probs(model, clean), "the clean run"),
        corrupted=scored(metric, log_probs(model, corrupted), "the corrupted run"),
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
        entering = self.cache["blocks.0.hook_resid_pre"]
        for layer, block in enumerate(self.model.blocks):
            before, after = (self.cache[f"blocks.{layer}.hook_resid_{end}"] for end in ("pre", "post"))
            written = sum(self.written(f"L{layer}H{head}") for head in range(self.model.cfg.n_heads)) + block.attn.b_O
            off = max(float((after - before - written).abs().max()), float((before - entering).abs().max()))
            if not off <= _ROUNDING.get(after.dtype, 0.1) * max(1.0, float((after - before).abs().max())):
                raise ValueError(
                    "patch_paths takes what a layer adds to the residual stream for the sum of its heads' z W_O: in "
                    f"layer {layer} the two differ by {off:.3g} (a hook behind hook_z or between layers, or a "
                    "normalisation after attention); use patch_activations"
                )
            entering = after

    def written(self, sender: str) -> Float[Tensor, "batch pos d_model"]:
        if sender == "embed":
            return self.cache["blocks.0.hook_resid_pre"]
        layer, head = head_of(sender)
        return self.cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ self.model.W_O[layer, head]

    def head_output(self, reader: str, change: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """What a head writes when `change` is added to one of its inputs."""
        (layer, head), kind, kept = head_of(reader), reader[-1], []

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


def _along(path: Sequence[str], clean: _Run, corrupted: _Run) -> Float[Tensor, "batch d_vocab"]:
    change = clean.written(path[0]) - corrupted.written(path[0])
    for reader in path[1:-1]:
        change = corrupted.head_output(reader, change) - corrupted.written(reader[:-2])
    return corrupted.log_probs(change)


def _check_path_patching(model: HookedTransformer) -> None:
    """Refuse models whose settings path patching would change, or would address wrongly."""
    if not model.cfg.attn_only:
        raise ValueError("patch_paths follows attention alone: this model has MLPs; use patch_activations")
    if model.cfg.n_key_value_heads is not None:
        raise ValueError(
            f"patch_paths needs keys and values of their own for each head: this model shares them "
            f"(n_key_value_heads={model.cfg.n_key_value_heads}); use patch_activations"
        )
    inputs = tuple(f"hook_{kind}_input" for kind in "qkv")
    hooked = [] if model.cfg.use_split_qkv_input else [at for at in attachments(model) if at.endswith(inputs)]
    if hooked:
        raise ValueError(
            "patch_paths gives queries, keys and values inputs of their own, which would switch on the "
            f"{hooked[0]} that this model does not call (use_split_qkv_input=False); remove it"
        )


@contextmanager
def _separate_inputs(model: HookedTransformer) -> Iterator[None]:
    """Within the context queries, keys and values have inputs of their own (`hook_q_input`, ...)."""
    before = model.cfg.use_split_qkv_input
    try:
        model.set_use_split_qkv_input(True)
    except NotImplementedError as error:
        raise ValueError(
            "patch_paths gives queries, keys and values inputs of their own (use_split_qkv_input), which this bridge "
            "does not have; use patch_activations"
        ) from error
    try:
        yield
    finally:
        model.set_use_split_qkv_input(before)


def _path_graph(model: HookedTransformer) -> nx.DiGraph:
    """What may follow what on a path: a sender, heads' inputs in later and later layers, the logits."""
    heads = {f"L{layer}H{head}": layer for layer, head in live_heads(model)}
    inputs = {f"{head}.{kind}": layer for head, layer in heads.items() for kind in "qkv"}
    readers = inputs | {LOGITS: model.cfg.n_layers}
    senders = {"embed": -1} | heads
    before = senders | inputs
    return nx.DiGraph((a, b) for a in before for b in readers if before[a] < readers[b])


def _check_path(graph: nx.DiGraph, path: Sequence[str]) -> None:
    """Raise a ValueError that says what a path is made of, unless this is one."""
    if len(path) < 2 or path[-1] != LOGITS:
        raise ValueError(f"a path is a sender, heads' inputs, and 'logits' at the end: got {path!r}")
    unknown = [node for node in path if node not in graph]
    if unknown or "." in path[0]:
        node = unknown[0] if unknown else path[0]
        raise ValueError(f"no node {node!r} here; a path goes from embed or a head to logits: {', '.join(graph)}")
    if not nx.is_path(graph, path):
        raise ValueError(f"a path goes through later and later layers: got {' -> '.join(path)}")
