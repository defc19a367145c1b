"""The optimisers: compiled Adam against torch's own, also when it goes on half way; and what else a fused run does."""

import threading

import numpy as np
import pytest
import torch
from assertions import assert_close

import causal_circuits as cc
from causal_circuits.training import compiled, runs
from causal_circuits.training.checkpoints import State
from causal_circuits.training.updates import Updates

STEPS = 40
STAGES = {
    "adam": (cc.Stage(STEPS, 0.05),),
    "adam, decaying weights": (cc.Stage(STEPS, 0.05, weight_decay=0.3),),
    "adamw, cosine": (cc.Stage(STEPS, 0.05, optimizer="adamw", schedule="cosine", weight_decay=0.3),),
    "three stages": (
        cc.Stage(10, 0.3, train=("W_U",)),
        cc.Stage(12, 0.05, optimizer="sgd"),
        cc.Stage(18, 0.1, schedule="linear"),
    ),
}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    """Two members' weights, flat and of whole vectors, as the fused run keeps them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_Q.0": (2, 64), "W_U": (2, 128)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()
    }


def gradients(step: int) -> list[torch.Tensor]:
    """Gradients of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(1 + step)
    sizes = 10.0 ** torch.randint(-6, 3, (128,), generator=generator)
    drawn = [torch.randn(2, n, generator=generator) * sizes[:n] for n in (64, 128)]
    return [torch.where(gradient.abs() > 1e-6, gradient, 0.0) for gradient in drawn]


def updated(
    stages: tuple[cc.Stage, ...],
    compiled: bool,
    dtype: torch.dtype = torch.float32,
    start: tuple[int, dict[str, torch.nn.Parameter], dict[str, torch.Tensor]] | None = None,
    until: int = STEPS,
) -> tuple[dict[str, torch.nn.Parameter], Updates]:
    first, found, remembered = start or (0, parameters(dtype), {})
    for parameter in found.values():
        parameter.grad = torch.zeros_like(parameter)
    updates = Updates(found, stages, start=State(first, 0.0, remembered) if start else None, compiled=compiled)
    for step in range(first, until):
        for parameter, gradient in zip(found.values(), gradients(step), strict=True):
            parameter.grad.copy_(gradient)
        updates.step()
    return found, updates


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("name", STAGES)
def test_the_compiled_adam_is_torchs(name: str) -> None:
    """Compared with torch in float64, it is as near as torch's own in float32, to a factor of two."""
    exact = updated(STAGES[name], compiled=False, dtype=torch.float64)[0]
    torchs = updated(STAGES[name], compiled=False)[0]
    with torch.no_grad():
        for key, value in updated(STAGES[name], compiled=True)[0].items():
            assert not torch.equal(value, parameters()[key])
            assert largest(value - exact[key]) <= 2 * largest(torchs[key] - exact[key]) + 1e-7
            assert_close(value, torchs[key], 1e-5)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("half_way", [1, 11, 30])
def test_what_it_remembers_is_all_that_it_needs(name: str, half_way: int) -> None:
    whole, at_the_end = updated(STAGES[name], compiled=True)
    half, updates = updated(STAGES[name], compiled=True, until=half_way)
    remembered = {key: value.clone() for key, value in updates.state().items()}
    gone_on, later = updated(STAGES[name], compiled=True, start=(half_way, half, remembered))
    for key, value in whole.items():
        assert torch.equal(gone_on[key], value)
    assert later.state().keys() == at_the_end.state().keys()
    for key, value in at_the_end.state().items():
        assert torch.equal(later.state()[key], value), key


@pytest.mark.parametrize("n_parts", [1, 2, 3])
@pytest.mark.parametrize("wrong", [None, np.nan, np.inf])
def test_what_threads_found_is_added_up_and_one_entry_that_is_no_number_shows(n_parts: int, wrong: float) -> None:
    parts, out = np.random.default_rng(0).normal(size=(n_parts, 192)).astype(np.float32), np.empty(192, np.float32)
    if wrong is not None:
        parts[-1, 70] = wrong
    total = compiled.compiled_sum()(parts, out)
    assert np.allclose(out, parts.sum(axis=0), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert np.isfinite(total) == (wrong is None)
    if wrong is None:
        assert total == pytest.approx(float(parts.sum(dtype=np.float64)), abs=1e-4)


def assert_closes(run: runs.FusedRun) -> None:
    closing = threading.Thread(target=run.close, daemon=True)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_run_broken_off_in_its_own_share_lets_the_other_threads_go(
    chain_task: cc.InContextTask, n_threads: int
) -> None:
    """The other threads wait for the caller's share before they draw in its place: they may not wait for ever."""
    config = cc.TrainConfig.joint(5, 0.1, batch_size=64)
    run = runs.FusedRun([cc.disentangled_transformer(4, 6)], [chain_task], [config], n_threads)
    kernel, caller = run._kernel, threading.get_ident()

    def interrupted(*arguments: object) -> float:
        if threading.get_ident() == caller:
            raise KeyboardInterrupt
        return kernel(*arguments)

    run.gradients()
    run._kernel = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.gradients()
    assert_closes(run)


def test_an_interruption_before_the_share_lets_them_go_too(
    chain_task: cc.InContextTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cc.TrainConfig.joint(5, 0.1, batch_size=64)
    run = runs.FusedRun([cc.disentangled_transformer(4, 6)], [chain_task], [config], 2)
    run.gradients()

    def interrupted(turn: object, thread: int, own: object = run._differentiate) -> None:
        if thread == 0:
            raise KeyboardInterrupt
        own(turn, thread)

    monkeypatch.setattr(run, "_differentiate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.gradients()
    assert_closes(run)
