"""Ordinary transformers as HookedTransformer configs: the paper's Figure 8, and what its equivalence claim is about.

Nothing here is disentangled: embeddings overlap, heads have value and output matrices, and all of them add into one
residual stream. Analyses that take any HookedTransformer (attention, heads, ablation, knock-out) take these.
"""

import torch

from causal_circuits.arguments import Count, Place, Several, check_arguments
from causal_circuits.models.annotation import HookedTransformer


@check_arguments
def ordinary_transformer(
    d_vocab: Several = 10,
    n_ctx: Several = 20,
    *,
    d_model: Count = 30,
    n_layers: Count = 2,
    n_heads: Count = 1,
    d_head: Count | None = None,
    d_mlp: Place = 120,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> HookedTransformer:
    """A transformer without LayerNorm, every weight trained: random learned embeddings, attention, then an MLP.

    The defaults are the paper's Figure 8 (two layers, one head, 30 coordinates). Weights start normal with variance
    1 / (number of inputs), embeddings standard normal, biases at zero. Attention has the usual 1 / sqrt(d_head).

    Args:
        d_vocab, n_ctx: tokens and context positions.
        d_model, n_layers, n_heads: as in TransformerLens.
        d_head: coordinates of a head; None gives each head all d_model of them.
        d_mlp: hidden units (ReLU) after each attention layer; 0 makes it attention-only.
        seed: of the initial weights.
        dtype, device: of the parameters.

    >>> ordinary_transformer(d_vocab=3, n_ctx=4)(torch.tensor([[0, 1, 2, 0]])).shape
    torch.Size([1, 4, 3])
    """
    from causal_circuits.models.hooked import build_transformer  # imports TransformerLens

    model = build_transformer(
        {
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "d_head": d_model if d_head is None else d_head,
            "n_heads": n_heads,
            "d_vocab": d_vocab,
            "attn_only": d_mlp == 0,
            "d_mlp": d_mlp or None,
            "act_fn": "relu",
            "normalization_type": None,
            "init_weights": False,
            "default_prepend_bos": False,
            "dtype": dtype,
            "device": str(device),
        }
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        weight = name.rpartition(".")[2]
        if weight.startswith("W_"):
            n_inputs = 1 if weight in ("W_E", "W_pos") else parameter.shape[-2]
            parameter.data.copy_(n_inputs**-0.5 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model
