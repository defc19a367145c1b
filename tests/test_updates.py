"""The native core's optimisers against torch's own; and its threads."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from assertions import assert_close

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.models.fused import TRAINED
from causal_circuits.training import fused_run
from causal_circuits.training.structured_run import StagedOptimizer

STEPS = 40
STAGES = {
    "adam": (cc.Stage(STEPS, 0.05),),
    "adam, decaying weights": (cc.Stage(STEPS, 0.05, weight_decay=0.3),),
    "adamw, cosine": (cc.Stage(STEPS, 0.05, optimizer="adamw", schedule="cosine", weight_decay=0.3),),
    "sgd, decaying weights": (cc.Stage(STEPS, 0.05, optimizer="sgd", weight_decay=0.3),),
    "three stages": (
        cc.Stage(10, 0.3, train=("W_U",)),
        cc.Stage(12, 0.05, optimizer="sgd"),
        cc.Stage(18, 0.1, schedule="linear"),
    ),
}
SIZES = (4, 3, 1, 1)
Values = dict[str, torch.Tensor]


def trainer(members: int = 2) -> object:
    return native.core().Trainer(SIZES, members, 8, 1, [], [(0, 0)] * members)


def stacks(of: Callable[[int], np.ndarray]) -> Values:
    return {name: torch.from_numpy(of(which)) for which, name in enumerate(TRAINED)}


def first_weights() -> Values:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(stack.shape, generator=generator) for name, stack in stacks(trainer().weights).items()}


def gradients(step: int) -> Values:
    """Gradients of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(1 + step)

    def draw(like: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(like.shape, generator=generator)
        drawn *= 10.0 ** torch.randint(-6, 3, like.shape, generator=generator)
        return torch.where(drawn.abs() > 1e-6, drawn, 0.0)

    return {name: draw(weights) for name, weights in first_weights().items()}


def by_torch(stages: tuple[cc.Stage, ...], dtype: torch.dtype) -> Values:
    found = {name: torch.nn.Parameter(weights.to(dtype)) for name, weights in first_weights().items()}
    optimizer = StagedOptimizer(found, stages)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            found[name].grad = gradient.to(dtype)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in found.items()}


def by_core(stages: tuple[cc.Stage, ...]) -> Values:
    core, numbers = trainer(), {name: which for which, name in enumerate(TRAINED)}
    for name, weights in first_weights().items():
        stacks(core.weights)[name].copy_(weights)
    group = fused_run._Group(0, 2, stages, numbers)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            stacks(core.gradients_of)[name].copy_(gradient)
        group.update(core, step)
    return {name: weights.clone() for name, weights in stacks(core.weights).items()}


@pytest.mark.parametrize("name", STAGES)
def test_the_cores_optimisers_are_torchs(name: str) -> None:
    """Compared with torch in float64, they are as near as torch's own in float32, to a factor of two."""
    exact, torchs = by_torch(STAGES[name], torch.float64), by_torch(STAGES[name], torch.float32)
    for key, value in by_core(STAGES[name]).items():
        assert not torch.equal(value, first_weights()[key])
        largest = [float((one - exact[key]).abs().max()) for one in (value, torchs[key])]
        assert largest[0] <= 2 * largest[1] + 1e-7
        assert_close(value, torchs[key], 1e-5)


@pytest.mark.parametrize("wrong", [None, np.nan, np.inf])
@pytest.mark.parametrize("batch", [32, 1024])
def test_one_gradient_that_is_not_finite_shows_and_its_member_is_named(wrong, batch, chain_task) -> None:
    models = [cc.disentangled_transformer(4, 6) for _ in range(3)]
    if wrong is not None:
        models[1].W_U.data[0, 0] = wrong
    run = fused_run.FusedRun(models, [chain_task] * 3, [cc.TrainConfig.joint(5, 0.1, batch_size=batch)] * 3, 2)
    run.gradients()
    assert run.non_finite_member() == (None if wrong is None else 1)
    run.close()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_steps", [0, 1, 3])
def test_a_run_may_be_closed_at_any_time(chain_task: cc.InContextTask, n_threads: int, n_steps: int) -> None:
    """Its threads may still be drawing."""
    config = cc.TrainConfig.joint(5, 0.1, batch_size=20_000)
    before = threading.active_count()
    run = fused_run.FusedRun([cc.disentangled_transformer(4, 6)], [chain_task], [config], n_threads)
    for _ in range(n_steps):
        run.gradients()
    closing = threading.Thread(target=run.close, daemon=True)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        run.gradients()
