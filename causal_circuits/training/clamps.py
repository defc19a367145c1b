"""What is given and not learned: the pattern of a layer, and blocks of weights. What forms elsewhere then?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, has_layout, layout_of, live_heads
from causal_circuits.tasks.batch import check_probabilities
from causal_circuits.training.steps import trainable_parameters


@check_arguments
@contextmanager
def clamped_attention(
    model: HookedTransformer,
    attention: Mapping[int, Float[Tensor, "... n_ctx n_ctx"]],
) -> Iterator[None]:
    """Within the context some layers have given patterns, whatever their weights; no gradient reaches those weights.

    ``cc.train(..., attention=...)`` trains within it. Afterwards the model attends as its weights say again, so what
    was trained with a clamp is measured within this context too.

    Args:
        model: any HookedTransformer.
        attention: layer -> pattern [n_ctx, n_ctx] for all its heads, or one for each, [head_index, n_ctx, n_ctx]; of
            shorter sequences its first rows and columns.

    Raises:
        ValueError: a layer that the model has not, a pattern of another shape, with keys behind the query, or whose
            rows are no probabilities.

    >>> import causal_circuits as cc
    >>> model, tokens = cc.disentangled_transformer(d_vocab=3, n_ctx=4), torch.tensor([[0, 1, 2, 0]])
    >>> with cc.training.clamped_attention(model, {0: torch.eye(4)}):
    ...     cc.mean_attention(model, tokens)[0, 0].equal(torch.eye(4))
    True
    """
    given = {layer: _checked(model, layer, pattern) for layer, pattern in attention.items()}
    hooks = [(f"blocks.{layer}.attn.hook_pattern", partial(_put, given=pattern)) for layer, pattern in given.items()]
    with model.hooks(fwd_hooks=hooks):
        yield


@check_arguments
def block_masks(model: HookedTransformer, blocks: Mapping[str, Sequence[tuple[str, ...]]]) -> dict[str, Tensor]:
    """What `TrainConfig.blocks` trains of each parameter that it names: 1 there, 0 elsewhere; the same for every head.

    Raises:
        ValueError: a parameter or a slot that the model has not.

    >>> masks = block_masks(cc.disentangled_transformer(3, 6), {"W_Q.0": [("token", "position")], "W_U": [("token",)]})
    >>> masks["W_Q.0"][0, :3, 3:9].all(), masks["W_Q.0"].sum() == 3 * 6, masks["W_U"].sum() == 3 * 3
    (tensor(True), tensor(True), tensor(True))
    """
    if not (has_layout(model) and layout_of(model).kind == "disentangled"):
        raise ValueError("blocks of weights are those of a disentangled model: give TrainConfig blocks=None")
    named, masks = layout_of(model).slots(), dict[str, Tensor]()
    parameters = trainable_parameters(model)
    for name, pairs in blocks.items():
        if name not in parameters:
            raise ValueError(f"blocks are of trained parameters, {', '.join(parameters)}: got {name!r}")
        n_slots, width = (1, model.cfg.d_model) if name == "W_U" else (2, parameters[name].shape[-1])
        masks[name] = torch.zeros_like(parameters[name], requires_grad=False)
        for pair in pairs:
            if len(pair) != n_slots or any(slot not in named or named[slot].stop > width for slot in pair):
                known = ", ".join(slot for slot in named if named[slot].stop <= width)
                raise ValueError(f"a block of {name} is named by {n_slots} of the slots {known}: got {pair}")
            place = tuple(named[slot].slice for slot in pair)
            masks[name][place if name == "W_U" else (slice(None), *place)] = 1.0
    return masks


def _put(pattern: Tensor, hook: object, given: Tensor) -> Tensor:
    n_ctx = pattern.shape[-1]
    return given[:, :n_ctx, :n_ctx].to(pattern).expand_as(pattern)


def _checked(model: HookedTransformer, layer: int, pattern: Tensor) -> Float[Tensor, "head_index n_ctx n_ctx"]:
    """The pattern of every head of a layer, zeros for dead ones; a ValueError if it is none."""
    n_heads, n_ctx = sum(own == layer for own, _ in live_heads(model)), model.cfg.n_ctx
    if n_heads == 0:
        raise ValueError(f"attention names layers of the model, 0 .. {model.cfg.n_layers - 1}: got {layer}")
    if pattern.shape not in ((n_ctx, n_ctx), (n_heads, n_ctx, n_ctx)):
        raise ValueError(
            f"a pattern of layer {layer} must be [n_ctx, n_ctx] = {[n_ctx, n_ctx]} or {[n_heads, n_ctx, n_ctx]}, one "
            f"for each head: got {list(pattern.shape)}"
        )
    later = (pattern.triu(1) > 0).nonzero()
    if len(later):
        *_, query, key = later[0].tolist()
        raise ValueError(
            f"a query must not attend to a later key: the pattern of layer {layer} has query {query} attend to key "
            f"{key}; rows are queries, columns keys"
        )
    check_probabilities(f"the pattern of layer {layer}", pattern, 1e-3)
    every = pattern.new_zeros(model.cfg.n_heads, n_ctx, n_ctx)
    every[:n_heads] = pattern
    return every
