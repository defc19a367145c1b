"""The fused step against float64 autograd of the plain einsum model, and against the hooks."""

import oracles
import pytest
import torch
from assertions import assert_close, by_autograd, draw, gradients_of, reduced
from torch import Tensor

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.models import HookedTransformer
from causal_circuits.models.fused import can_fuse, fused_step, live_weights
from causal_circuits.models.structured import PROBABILITY_FLOOR

CHUNK, WIDEST_GAP = native.core().CHUNK, native.core().WIDEST_GAP
SIZES = [(3, 6), (7, 4), (5, 5)]  # d_vocab below, above and equal to n_ctx
HEADS = [(1, 1), (2, 1), (1, 2), (3, 2)]


def assert_fused_equals_autograd(model: HookedTransformer, tokens: Tensor, targets: Tensor) -> None:
    """Loss, all gradients, and what a training records of layer 0 (mean attention, score gradients), in float64."""
    (loss, *gradients), attention, score_gradient = by_autograd(model, tokens, targets)
    assert fused_step(model, tokens, targets) == pytest.approx(float(loss), rel=1e-5)
    for found, expected in zip(gradients_of(model), gradients, strict=True):
        assert_close(found, expected, 1e-5)
    task, config = cc.BatchTask(cc.Batch(tokens, targets)), cc.TrainConfig.joint(1, batch_size=len(tokens))
    record = cc.train(model, task, config, record=cc.RecordAt(steps=(0,), layers=(0,)), progress=False)
    assert record.path == "fused"
    assert_close(record.attention[0, 0, : len(attention)], attention, 1e-5)
    assert_close(-record.score_gradients[0, 0, : len(attention)], score_gradient, 1e-5)


@pytest.mark.parametrize(("d_vocab", "n_ctx"), SIZES)
@pytest.mark.parametrize("n_heads", HEADS, ids=str)
@pytest.mark.parametrize("batch", [1, 9])
def test_fused_gradients_equal_autograd(n_heads: tuple[int, int], d_vocab: int, n_ctx: int, batch: int) -> None:
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.4, seed=1)
    assert can_fuse(model)
    assert_fused_equals_autograd(model, *draw(d_vocab, n_ctx, batch))


@pytest.mark.parametrize(("d_vocab", "n_ctx"), [*SIZES, (19, 20), (40, 33), (3, 160)])
@pytest.mark.parametrize("batch", [1, CHUNK + 1])
def test_the_reduced_models_gradients_equal_autograd(d_vocab: int, n_ctx: int, batch: int) -> None:
    model = reduced(d_vocab, n_ctx)
    assert can_fuse(model)
    assert_fused_equals_autograd(model, *draw(d_vocab, n_ctx, batch))


def test_the_reduced_models_large_scores() -> None:
    """Some tokens then have a probability of nearly 0, where the floor under the logarithm decides.

    Each row of layer 0 is a position and the one before, exactly half and half: float32 holds layer 1's scores exactly.
    """
    model = reduced(4, 7)
    a1, a2 = (weight[0] for weight in live_weights(model))
    a1.copy_(128.0 * (torch.eye(7) + torch.eye(7).roll(-1, dims=1).tril()))
    a2.copy_(2.0 * torch.randint(-8, 9, a2.shape, generator=torch.Generator().manual_seed(0)))
    tokens, targets = draw(4, 7, 24)
    f = oracles.reduced_forward(a1.double(), a2.double(), tokens, 4)
    assert ((f > 0) & (f < PROBABILITY_FLOOR)).any()
    assert_fused_equals_autograd(model, tokens, targets)


def test_reduced_models_train_in_the_core_as_by_autograd() -> None:
    """Weights, losses and the whole record, of an ensemble; three parts of a batch."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4)
    configs = [cc.TrainConfig.joint(6, 0.1, batch_size=200, seed=seed) for seed in range(2)]
    record = cc.RecordAt(steps=(0, 3, 6), weight_gradients=True)
    ends = []
    for path in ("fused", "plain"):
        models = [cc.models.warm_start(reduced(4, 6, 0.2), 1.0) for _ in configs]
        if path == "plain":
            with cc.models.plain_forward():
                records = cc.train_ensemble(models, [task] * 2, configs, record=record, progress=False)
        else:
            records = cc.train_ensemble(models, [task] * 2, configs, record=record, progress=False)
            assert [record.path for record in records] == ["fused"] * 2
        ends.append((models, records))
    for found, expected in zip(ends[0][0], ends[1][0], strict=True):
        assert_close(found.W_Q, expected.W_Q, 1e-4)
    for found, expected in zip(ends[0][1], ends[1][1], strict=True):
        assert_close(found.losses, expected.losses, 1e-5)
        assert_close(found.attention[:, 0], expected.attention[:, 0], 1e-5)
        assert_close(found.attention[:, 1, :, -1], expected.attention[:, 1, :, -1], 1e-5)
        assert torch.allclose(found.attention[:, 1], expected.attention[:, 1], atol=1e-2)  # of fewer sequences
        for name in ("score_gradients", "weight_gradients"):
            assert_close(getattr(found, name), getattr(expected, name), 1e-4)


@pytest.mark.parametrize("scale", [60, 120, 200])
@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1)], ids=str)
def test_scores_whose_exponentials_underflow(n_heads: tuple[int, int], scale: int) -> None:
    """Tokens and positions that pull `scale` in opposite directions: the product of both tables' exps underflows.

    Layer 0's weights are multiples of 1/4, so that float32 holds its scores exactly and the tolerance stays.
    """
    model, d_vocab, n_ctx = cc.disentangled_transformer(4, 7, n_heads, init_scale=0.4, seed=2), 4, 7
    generator = torch.Generator().manual_seed(scale)
    shape = model.blocks[0].attn.W_Q.data[:, : d_vocab + n_ctx, : d_vocab + n_ctx].shape
    weights = torch.randint(-8, 9, shape, generator=generator) / 4
    weights[:, :, 0] += scale  # a token wanted by everyone, and seldom there
    weights[:, d_vocab:, d_vocab + 2] += scale / 2  # and a position, where another token may stand
    weights[:, 1, 1] -= scale
    model.blocks[0].attn.W_Q.data[:, : d_vocab + n_ctx, : d_vocab + n_ctx] = weights
    tokens, targets = draw(d_vocab, n_ctx, 24, seed=scale)
    tokens[:8][tokens[:8] == 0] = 1  # sequences in which the wanted token never occurs
    assert (tokens == 0).any()
    assert not (tokens[:8] == 0).any()
    assert_fused_equals_autograd(model, tokens, targets)


@pytest.mark.parametrize("gap", [59.0, 61.0])
@pytest.mark.parametrize("d_vocab", [4, 19])
def test_products_of_exponentials_up_to_the_widest_gap(d_vocab: int, gap: float) -> None:
    """Each row's largest score lies the whole gap below the sum of its tables' largest, spread over three of them."""
    assert 59.0 < WIDEST_GAP < 61.0
    n_ctx = 6
    model = cc.disentangled_transformer(d_vocab, n_ctx, init_scale=0.0, seed=2)
    generator = torch.Generator().manual_seed(5)
    for name in ("blocks.1.attn.W_Q", "unembed.W_U"):
        weight = dict(model.named_parameters())[name].data
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
    first = model.blocks[0].attn.W_Q.data[0, : d_vocab + n_ctx, : d_vocab + n_ctx]
    first[:, 0] = gap / 4  # a token that never occurs, wanted by every token and position
    first[:d_vocab, d_vocab + n_ctx - 1] = gap / 2  # the last position, which only the last query sees
    first[d_vocab:, d_vocab:] = torch.randint(-30, 31, (n_ctx, n_ctx), generator=generator) / 4
    tokens, targets = draw(d_vocab, n_ctx, 24)
    tokens[tokens == 0] = 1
    assert_fused_equals_autograd(model, tokens, targets)


@pytest.mark.parametrize("kind", ["disentangled", "reduced"])
def test_a_batch_that_went_wrong_shows_and_leaves_nothing_to_the_next(kind: str) -> None:
    tokens, targets = draw(3, 6, 9)
    model = reduced(3, 6) if kind == "reduced" else cc.disentangled_transformer(3, 6, (2, 1), init_scale=0.4)
    for weight in live_weights(model):
        kept = weight.clone()
        weight.fill_(float("nan"))
        loss = fused_step(model, tokens, targets)
        assert loss != loss
        weight.copy_(kept)
        assert_fused_equals_autograd(model, tokens, targets)


def test_large_scores_in_the_second_layer() -> None:
    """Each layer-0 row is a parent and the position itself, exactly half and half: layer 1's scores are exact too."""
    model = cc.plant_circuit(cc.chain_graph(6), d_vocab=4, attention_scale=128.0, match_scale=64.0)
    cc.models.attention_block(model, 0, 0, "position", "position").data.fill_diagonal_(128.0)
    model.unembed.W_U.data += 0.3 * torch.randn(model.W_U.shape, generator=torch.Generator().manual_seed(0))
    assert_fused_equals_autograd(model, *draw(4, 6, 16))


def test_when_the_step_may_stand_in_for_autograd() -> None:
    assert can_fuse(cc.disentangled_transformer(3, 5))
    assert can_fuse(cc.disentangled_transformer(3, 5, (3, 2)))
    assert not can_fuse(cc.disentangled_transformer(3, 5, dtype=torch.float64))
    assert not can_fuse(cc.disentangled_transformer(3, 5, (1,)))
    assert not can_fuse(cc.disentangled_transformer(3, 5, (1, 1, 1)))
    assert can_fuse(cc.reduced_transformer(3, 5))
    assert not can_fuse(cc.reduced_transformer(3, 5, (2, 1)))
    edited, hooked = cc.reduced_transformer(3, 5), cc.reduced_transformer(3, 5)
    edited.blocks[0].attn.W_Q.data[0, 0, 0] = 1.0
    hooked.blocks[0].attn.W_Q.register_hook(lambda gradient: 2 * gradient)
    assert not can_fuse(edited)
    assert not can_fuse(hooked)
