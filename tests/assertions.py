"""Assertions that several test files share, and the gradients of random models that they are made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jaxtyping
import oracles
import pytest
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, layout_of
from causal_circuits.models.fused import _trained, live_weights
from causal_circuits.models.structured import PROBABILITY_FLOOR


@contextmanager
def unchecked_types() -> Iterator[None]:
    """Within the context jaxtyping checks nothing, so that a wrong type reaches the package's own validation."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_refused(call: Callable[[], object], *words: str) -> None:
    """The call raises a ValueError whose one line holds every one of `words` (rule, value, remedy)."""
    with unchecked_types(), pytest.raises(ValueError) as caught:  # noqa: PT011  # words are matched below
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message!r}"


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every entry agrees to `tolerance` times the largest entry of `expected`."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.isfinite().all()
    assert expected.isfinite().all()
    difference = float((found.detach().double() - expected.detach().double()).abs().max())
    size = float(expected.detach().abs().max())
    assert size > 0, "nothing to compare: the expected tensor is zero"
    assert difference <= tolerance * size, f"relative difference {difference / size:.3g} exceeds {tolerance:g}"


def assert_within_sampling_error(found: Tensor, expected: Tensor, standard_error: Tensor, z: float = 4.5) -> None:
    """Every entry lies within z standard errors of what is expected."""
    worst = float(((found - expected).abs() / standard_error).max())
    assert worst < z, f"{worst:.1f} standard errors off"


def hooks_of(model: HookedTransformer) -> dict[str, tuple[int, int, int, int]]:
    """How many hooks of each kind sit on every HookPoint: TransformerLens's lists and torch's own."""
    return {
        name: (len(p.fwd_hooks), len(p.bwd_hooks), len(p._forward_hooks), len(p._backward_hooks))
        for name, p in model.hook_dict.items()
    }


@contextmanager
def assert_given_back(model: HookedTransformer) -> Iterator[None]:
    """After the context the model has the hooks, weights, gradients and requires_grad flags that it had before."""
    hooks, grad_mode = hooks_of(model), torch.is_grad_enabled()
    state = {
        name: (p.detach().clone(), p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
        for name, p in model.named_parameters()
    }
    training, split = model.training, model.cfg.use_split_qkv_input
    yield
    assert model.cfg.use_split_qkv_input == split
    assert hooks_of(model) == hooks
    assert torch.is_grad_enabled() == grad_mode
    assert model.training == training
    for name, parameter in model.named_parameters():
        value, requires_grad, gradient, gradient_value = state[name]
        assert torch.equal(parameter.nan_to_num(), value.nan_to_num()), name
        assert parameter.requires_grad == requires_grad, name
        assert parameter.grad is gradient, name
        assert gradient is None or torch.equal(gradient, gradient_value), name


# ---- gradients


def draw(d_vocab: int, n_ctx: int, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.softmax(2 * torch.randn(batch, d_vocab, generator=generator), dim=-1)
    return torch.randint(d_vocab, (batch, n_ctx), generator=generator), targets


def by_autograd(model: HookedTransformer, tokens: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """From the float64 oracle: loss and gradients of A1, A2 and W_U (a reduced model has none), as live weights are.

    Then layer 0's mean attention and the gradient of its scores.
    """
    layout = layout_of(model)
    if layout.kind == "reduced":
        a1, a2 = (weight[0].double().requires_grad_() for weight in live_weights(model))
        f = oracles.reduced_forward(a1, a2, tokens, layout.d_vocab)
        loss = -(targets.double() * (f + PROBABILITY_FLOOR).log()).sum(dim=-1).mean()
        loss.backward()
        future = torch.ones_like(a1, dtype=torch.bool).triu(1)
        pattern = a1.detach().masked_fill(future, -torch.inf).softmax(dim=-1)
        return [loss.detach(), a1.grad[None], a2.grad[None]], pattern[None], a1.grad[None]
    attention, readout = oracles.weights_of(model, layout.d_vocab, layout.n_ctx, layout.n_heads)
    run = oracles.disentangled_forward(attention, readout, tokens, layout.d_vocab)
    loss = oracles.cross_entropies(run.logits, targets).mean()
    loss.backward()
    gradients = [*(torch.stack([head.grad for head in heads]) for heads in attention), readout.grad]
    heads = [(0, head) for head in range(layout.n_heads[0])]
    pattern = torch.stack([run.patterns[head].detach().mean(dim=0) for head in heads])
    return [loss.detach(), *gradients], pattern, torch.stack([run.scores[head].grad.sum(dim=0) for head in heads])


def gradients_of(model: HookedTransformer) -> list[Tensor]:
    """Of A1, A2 and W_U; everything else, which pads a head or a layer, has none."""
    live = [parameter.grad[block].clone() for parameter, block in _trained(model)]
    every = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert sum(int(grad.count_nonzero()) for grad in every) == sum(int(grad.count_nonzero()) for grad in live)
    return live


def reduced(d_vocab: int, n_ctx: int, scale: float = 0.5) -> HookedTransformer:
    model, generator = cc.reduced_transformer(d_vocab, n_ctx), torch.Generator().manual_seed(1)
    for weight in live_weights(model):
        weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model
