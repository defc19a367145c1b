"""The last layer of an ordinary transformer, for the last query alone: what training at the last position needs.

With r the residual stream before the layer and q the last query, score j is q . (W_K^T r_j + b_K) = (W_K q) . r_j plus
a constant that the softmax forgets, and the head's output is W_V^T (sum_j p_j r_j) + b_V: no key and no value is
formed, and the MLP and the read-out see one position. The layers before run as TransformerLens runs them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.models.acceptance import takes_fast_forward
from causal_circuits.models.annotation import HookedTransformer


def can_skip_positions(model: HookedTransformer) -> bool:
    """Whether the last layer is one that `last_position_logits` knows, with no hook on it or behind it.

    It knows what `ordinary_transformer` builds: no LayerNorm, learned positions, causal attention to everything
    before, then an MLP or nothing. TransformerLens's hooks on layers before the last are called, no others.
    """
    last = f"blocks.{model.cfg.n_layers - 1}."
    return takes_fast_forward(model, lambda name: not name.startswith((last, "ln_final", "unembed")))


def last_position_logits(
    model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of the last position of a model for which `can_skip_positions` holds."""
    block = model.blocks[-1]
    attn, residual = block.attn, model(tokens, stop_at_layer=model.cfg.n_layers - 1)
    query = torch.einsum("bd,hde->bhe", residual[:, -1], attn.W_Q) + attn.b_Q
    reading = torch.einsum("bhe,hde->bhd", query, attn.W_K)
    pattern = (reading @ residual.transpose(1, 2) / attn.attn_scale).softmax(dim=-1)
    values = torch.einsum("bhd,hde->bhe", pattern @ residual, attn.W_V) + attn.b_V
    output = residual[:, -1:] + torch.einsum("bhe,hed->bd", values, attn.W_O)[:, None] + attn.b_O
    if not model.cfg.attn_only:
        output = output + block.mlp(output)
    return model.unembed(output)[:, -1]
