"""Assertions that several test files share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jaxtyping
import pytest
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer


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
