"""Disentangled and ordinary attention-only transformers compute the same functions, whatever their weights."""

import pytest
import torch
from users import users_model

import causal_circuits as cc
from causal_circuits.models import HookedTransformer

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}  # relative to the largest logit


def random_attention_only(n_layers: int, n_heads: int, dtype: torch.dtype) -> HookedTransformer:
    """Every weight and every bias random."""
    model = cc.models.ordinary_transformer(
        4, 6, d_model=9, n_layers=n_layers, n_heads=n_heads, d_head=5, d_mlp=0, seed=1, dtype=dtype
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".b_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def random_tokens(n: int = 32) -> torch.Tensor:
    return torch.randint(4, (n, 6), generator=torch.Generator().manual_seed(5))


def assert_same_function(one: HookedTransformer, other: HookedTransformer) -> None:
    """The same logits at every position, and the same attention in every live head."""
    expected, found = one(random_tokens()), other(random_tokens())
    tolerance = TOLERANCE[one.W_U.dtype] * float(expected.detach().abs().max())
    assert float((expected - found).detach().abs().max()) <= tolerance
    patterns = cc.mean_attention(one, random_tokens()), cc.mean_attention(other, random_tokens())
    for layer, head in cc.models.live_heads(one):
        assert torch.allclose(patterns[0][layer, head], patterns[1][layer, head], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_a_random_attention_only_transformer_is_disentangled_exactly(n_layers, n_heads, dtype):
    ordinary = random_attention_only(n_layers, n_heads, dtype)
    disentangled = cc.models.disentangle(ordinary)
    assert_same_function(ordinary, disentangled)
    assert cc.models.slots(disentangled)["position"].stop == 4 + 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1), (1, 2), (2, 1, 1)])
def test_a_random_disentangled_transformer_is_entangled_exactly_and_back(n_heads, dtype):
    disentangled = cc.disentangled_transformer(4, 6, n_heads, init_scale=0.3, seed=2, dtype=dtype)
    ordinary = cc.models.entangle(disentangled, seed=3)
    assert_same_function(disentangled, ordinary)
    assert_same_function(disentangled, cc.models.disentangle(ordinary))


def test_the_rotation_leaves_no_slot_in_sight(random_model):
    ordinary = cc.models.entangle(random_model)
    assert not cc.models.has_layout(ordinary)
    embeddings = torch.cat([ordinary.W_E, ordinary.W_pos]).detach()
    assert torch.allclose(embeddings @ embeddings.T, torch.eye(len(embeddings)), atol=1e-5)
    assert int((embeddings.abs() > 1e-3).sum(dim=1).min()) > embeddings.shape[1] // 2


def test_another_seed_is_another_rotation_of_the_same_function(random_model):
    one, other = cc.models.entangle(random_model, seed=0), cc.models.entangle(random_model, seed=1)
    assert not torch.allclose(one.W_E, other.W_E, atol=0.1)
    assert_same_function(one, other)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"attn_only": False, "d_mlp": 8, "act_fn": "relu"}, "attn_only=False"),
        ({"normalization_type": "LN"}, "normalization_type='LN'"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 4}, "positional_embedding_type='rotary'"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional'"),
        ({"n_heads": 7, "n_layers": 4}, "at most 8,192"),
    ],
)
def test_what_cannot_be_disentangled_is_named(change, rule):
    with pytest.raises(ValueError, match=rule):
        cc.models.disentangle(users_model(**change))


def test_a_reduced_model_cannot_be_entangled():
    with pytest.raises(ValueError, match="reduced"):
        cc.models.entangle(cc.reduced_transformer(3, 4))


def test_an_ordinary_transformer_is_plain_and_random():
    model = cc.models.ordinary_transformer(seed=0)
    assert (model.cfg.d_model, model.cfg.n_layers, model.cfg.d_mlp, model.cfg.normalization_type) == (30, 2, 120, None)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model.W_E, cc.models.ordinary_transformer(seed=1).W_E)
