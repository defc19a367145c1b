"""Bridges: TransformerLens's own class of models since version 4, as which a model of ours can be had too."""

from typing import Any

import torch
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models.acceptance import is_bridge, refuse_foreign
from causal_circuits.models.annotation import HookedTransformer

_SIZES = "d_model d_head n_layers n_ctx n_heads d_vocab d_vocab_out d_mlp attn_only act_fn"


@check_arguments
@torch.no_grad()
def as_bridge(model: HookedTransformer) -> Any:
    """A copy of a model as a TransformerBridge in evaluation mode, for tools of TransformerLens that take nothing else.

    Logits, and what hooks of the same names see, are equal up to rounding; at ``hook_attn_scores`` a bridge has the
    pattern. Training moves every weight of the copy: it does not stay disentangled. (On TransformerLens 3.9, whose own
    tools take the model itself, a bridge ignores edits at ``hook_pattern``, and no analysis of ours takes it.)

    Args:
        model: a HookedTransformer without normalisation, such as any model of ours.

    Raises:
        ValueError: the model is a bridge already, has something attached or a config field that a bridge has not, or
            (TransformerLens 4.3) a bias in its read-out.

    >>> model, tokens = cc.plant_circuit(cc.chain_graph(4), d_vocab=3), torch.tensor([[0, 1, 2, 0]])
    >>> torch.allclose(as_bridge(model)(tokens), model(tokens), atol=1e-4)
    True
    """
    from causal_circuits.models.hooked import boot_bridge  # imports TransformerLens

    if is_bridge(model):
        raise ValueError("as_bridge takes a HookedTransformer: this model is a bridge already")
    refuse_foreign(model, "as_bridge", "give it a model of causal_circuits with nothing attached (model.reset_hooks())")
    cfg = model.cfg
    sizes = {name: getattr(cfg, name) for name in _SIZES.split()}
    bridge = boot_bridge(sizes, dtype=model.W_U.dtype, device=model.W_U.device)
    _copy(bridge.embed, model.W_E)
    _copy(bridge.pos_embed, model.W_pos)
    for own, block in zip(bridge.blocks, model.blocks, strict=True):
        attn = block.attn
        own.attn.original_component.scale = attn.attn_scale
        for name in "QKV":
            weight, bias = getattr(attn, f"W_{name}"), getattr(attn, f"b_{name}")
            _copy(getattr(own.attn, name.lower()), weight.mT.flatten(0, 1), bias.flatten())
        _copy(own.attn.o, attn.W_O.flatten(0, 1).T, attn.b_O)
        if not cfg.attn_only:
            _copy(getattr(own.mlp, "in"), block.mlp.W_in.T, block.mlp.b_in)
            _copy(own.mlp.out, block.mlp.W_out.T, block.mlp.b_out)
    _copy(bridge.unembed, model.W_U.T, model.b_U)
    return bridge.eval()


def _copy(component: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    own = component.original_component
    own.weight.copy_(weight)
    if bias is not None and getattr(own, "bias", None) is not None:
        own.bias.copy_(bias)
    elif bias is not None and bool(bias.any()):
        raise ValueError("a bridge's read-out has no bias on this TransformerLens: this model's b_U is not zero")
