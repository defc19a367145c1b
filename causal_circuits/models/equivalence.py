"""The paper's equivalence, constructive and in both ways: disentangled against ordinary attention-only transformers.

Claim (section 2 of the paper): a disentangled transformer computes what an attention-only transformer computes, and
the other way round. Write h for the disentangled residual stream, which keeps every head's output in a slot of its
own, and x for an ordinary one, which adds them up. Then x = h R_l at layer l, with

    R_0 = [W_E; W_pos],      R_{l+1} = [R_l; R_l W_V^1 W_O^1; ...; R_l W_V^m W_O^m],
    A_h = (R_l W_Q^h) (R_l W_K^h)^T / scale,      disentangled W_U = R_L W_U.

Biases cost nothing: the token slot is a one-hot, so a constant is a term of every token's row of R.

The way back is a change of basis: a disentangled model is an attention-only transformer already, whose slots a rotation
of the residual stream hides.
"""

from typing import Any

import torch
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models.acceptance import foreign_fields, refuse_foreign
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.build import disentangled_transformer
from causal_circuits.models.layout import Layout, layout_of, note_origin

MAX_D_MODEL = 8192  # of the disentangled stream: (d_vocab + n_ctx) (1 + n_heads) ** n_layers


@check_arguments
@torch.no_grad()
def disentangle(model: HookedTransformer) -> HookedTransformer:
    """The disentangled transformer with the same logits, at every position, as an attention-only transformer.

    Exact up to rounding: computed in float64, then stored in the model's own precision. Biases and an attention scale
    are absorbed.

    Args:
        model: attention-only, without normalisation, causal, with learned absolute positions ("standard").

    Raises:
        ValueError: the model has something that a disentangled transformer has not (a config field, a hook, a
            parametrization), or is too large.

    >>> ordinary, tokens = cc.models.ordinary_transformer(3, 4, d_model=6, d_mlp=0), torch.tensor([[0, 1, 2, 0]])
    >>> torch.allclose(disentangle(ordinary)(tokens), ordinary(tokens), atol=1e-4)
    True
    """
    _check_attention_only(model)
    cfg, double = model.cfg, torch.float64
    disentangled = disentangled_transformer(
        cfg.d_vocab, cfg.n_ctx, (cfg.n_heads,) * cfg.n_layers, dtype=model.W_U.dtype, device=model.W_U.device
    )
    width = layout_of(disentangled).width
    reader = torch.cat([model.embed.W_E, model.pos_embed.W_pos]).to(double)  # R: ordinary = disentangled residual R
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        for head in range(cfg.n_heads):
            query = _plus_constant(reader @ attn.W_Q[head].to(double), attn.b_Q[head], cfg.d_vocab)
            key = _plus_constant(reader @ attn.W_K[head].to(double), attn.b_K[head], cfg.d_vocab)
            a = query @ key.T / _attention_scale(attn)
            disentangled.blocks[layer].attn.W_Q[head, : width(layer), : width(layer)] = a.to(model.W_U.dtype)
        moved = [reader @ (attn.W_V[head].to(double) @ attn.W_O[head].to(double)) for head in range(cfg.n_heads)]
        constant = attn.b_O.to(double) + torch.einsum("hd,hdm->m", attn.b_V.to(double), attn.W_O.to(double))
        reader = torch.cat([_plus_constant(reader, constant, cfg.d_vocab), *moved])
    disentangled.unembed.W_U.copy_(_plus_constant(reader @ model.W_U.to(double), model.b_U, cfg.d_vocab))
    note_origin(disentangled, "disentangle")
    _check_same_logits("disentangle", model, disentangled)
    return disentangled


@check_arguments
@torch.no_grad()
def entangle(model: HookedTransformer, *, seed: int = 0) -> HookedTransformer:
    """An ordinary attention-only transformer with the same logits as a disentangled one, its slots rotated away.

    Every weight that reads or writes the residual stream is rotated by one random orthogonal matrix: W_E, W_pos and W_O
    from the right, W_Q, W_K, W_V and W_U from the left by its transpose. No coordinate of the result has a name.

    Args:
        model: built by `disentangled_transformer`, `plant_circuit` or `disentangle`.
        seed: of the rotation.

    Raises:
        ValueError: the model is not disentangled.

    >>> planted, tokens = cc.plant_circuit(cc.chain_graph(4), d_vocab=3), torch.tensor([[0, 1, 2, 0]])
    >>> torch.allclose(entangle(planted)(tokens), planted(tokens), atol=1e-5)
    True
    """
    from causal_circuits.models.hooked import build_transformer  # imports TransformerLens

    layout = layout_of(model)
    if layout.kind != "disentangled":
        raise ValueError("only a disentangled model can be entangled: this one is reduced; it has no logits to keep")
    refuse_foreign(model, "entangle", _REMEDY)
    ordinary = build_transformer(model.cfg)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(model.cfg.d_model, model.cfg.d_model, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square)[0].to(model.W_U.device)

    def rotated(weight: Tensor, *, written: bool) -> Tensor:
        whole = weight.to(torch.float64)
        return (whole @ rotation if written else rotation.T @ whole).to(weight.dtype)

    ordinary.embed.W_E.copy_(rotated(model.W_E, written=True))
    ordinary.pos_embed.W_pos.copy_(rotated(model.W_pos, written=True))
    for own, other in zip(ordinary.blocks, model.blocks, strict=True):
        for name in ("W_Q", "W_K", "W_V"):
            getattr(own.attn, name).copy_(rotated(getattr(other.attn, name), written=False))
        own.attn.W_O.copy_(rotated(other.attn.W_O, written=True))
    ordinary.unembed.W_U.copy_(rotated(model.W_U, written=False))
    ordinary.unembed.b_U.copy_(model.b_U)
    _check_same_logits("entangle", model, ordinary)
    return ordinary


def _check_same_logits(tool: str, model: HookedTransformer, rewritten: HookedTransformer) -> None:
    """Raise a ValueError unless a rewritten model gives the logits of the original on some random sequences."""
    shape = (4, model.cfg.n_ctx)
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=torch.Generator().manual_seed(0)).to(model.W_U.device)
    expected, found = model(tokens).double(), rewritten(tokens).double()
    tolerance = 1e-6 if model.W_U.dtype == torch.float64 else 1e-2 if model.W_U.dtype == torch.float32 else 0.5
    off = float((found - expected).abs().max())
    if not off <= tolerance * max(1.0, float(expected.abs().max())):
        raise ValueError(
            f"{tool} must keep the logits: they are off by {off:.3g} on random sequences; the model has a feature that "
            f"{tool} does not know, or weights so large that {model.W_U.dtype} cannot hold their products"
        )


def _attention_scale(attn: Any) -> float:
    """What scores are divided by; a bridge's config says something else."""
    return attn.original_component.scale if hasattr(attn, "original_component") else attn.attn_scale


_REMEDY = "take it off first (model.reset_hooks(), torch.nn.utils.parametrize.remove_parametrizations)"


def _plus_constant(rows: Tensor, constant: Tensor, d_vocab: int) -> Tensor:
    """A map on [token | position | ...] plus a constant: added to each token's row, of which every input has one."""
    rows = rows.clone()
    rows[:d_vocab] += constant.to(rows.dtype)
    return rows


def _check_attention_only(model: HookedTransformer) -> None:
    cfg = model.cfg
    fields = foreign_fields(model)
    rules = [] if cfg.attn_only else ["attn_only=False"]
    rules += [f"d_vocab_out={cfg.d_vocab_out}, not d_vocab"] if cfg.d_vocab_out != cfg.d_vocab else []
    for broken in rules + fields:
        raise ValueError(f"only attention and learned positions can be disentangled: this model has {broken}")
    refuse_foreign(model, "disentangle", _REMEDY)
    d_model = Layout("disentangled", cfg.d_vocab, cfg.n_ctx, (cfg.n_heads,) * cfg.n_layers).width(cfg.n_layers)
    if d_model > MAX_D_MODEL:
        raise ValueError(
            f"a disentangled stream may have at most {MAX_D_MODEL:,} coordinates: (d_vocab + n_ctx) (1 + n_heads) ** "
            f"n_layers is {d_model:,}; take fewer heads or layers"
        )
