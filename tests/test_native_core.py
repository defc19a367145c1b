"""The native core under bad input, many threads, forks, interrupts, little memory and weights of every size."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_close, by_autograd, gradients_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interrupted import assert_same_weights, ended, started

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.models import HookedTransformer
from causal_circuits.models.fused import can_fuse, fused_step, live_weights
from causal_circuits.training.fused_run import FusedRun

SIZES, BATCH = (5, 4, 2, 1), 6  # n_ctx, d_vocab, heads of both layers
TASK = cc.InContextTask(cc.chain_graph(5), d_vocab=4)
CONFIG = cc.TrainConfig(
    (
        cc.Stage(4, 0.05, optimizer="sgd", weight_decay=0.1),
        cc.Stage(4, 0.02, optimizer="adamw", weight_decay=0.1),
        cc.Stage(4, 0.02, weight_decay=0.1),
    ),
    batch_size=200,  # three parts
    seed=3,
)


def trainer(samplers: list | None = None, batch: int = BATCH) -> object:
    return native.core().Trainer(SIZES, 1, batch, 2, samplers or [], [(1, 2)])


def new_model(seed: int = 0) -> HookedTransformer:
    return cc.disentangled_transformer(4, 5, (2, 1), init_scale=0.3, seed=seed)


def trained(
    seed: int = 0, task: cc.Task = TASK, config: cc.TrainConfig = CONFIG, **options: object
) -> HookedTransformer:
    model = new_model(seed)
    cc.train(model, task, config, progress=False, **options)
    return model


# ---- bad input


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"sizes": (5, 4, 0, 1)}, ValueError, "at least 1"),
        ({"sizes": (20_000, 4, 1, 1)}, ValueError, "16,384"),
        ({"sizes": (16_000, 4, 1, 3)}, ValueError, "fewer than 2^31"),
        ({"members": 0}, ValueError, "at least 1"),
        ({"batch": 2**31 - 1}, ValueError, "fewer than 2^31"),
        ({"threads": 0}, ValueError, "at least 1"),
        ({"reduced": True}, ValueError, "one head"),
        ({"samplers": [None]}, ValueError, "must be Samplers"),
        ({"samplers": [TASK.native_sampler()] * 2}, ValueError, "for each member"),
        ({"samplers": [TASK.native_sampler()], "keys": []}, ValueError, "for each member"),
        ({"samplers": [TASK.native_sampler()], "sizes": (6, 4, 1, 1)}, ValueError, "model's sizes"),
        ({"members": 2**30}, MemoryError, "1073741824 model(s) of sizes (n_ctx 5, d_vocab 4, heads (2, 1))"),
        ({"sizes": (16_000, 4, 1, 1), "members": 10**5}, MemoryError, "n_ctx 16000"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused(changed: dict, error: type[Exception], says: str) -> None:
    given = {"sizes": SIZES, "members": 1, "batch": BATCH, "threads": 2, "samplers": [], "keys": [(1, 2)]}
    with pytest.raises(error) as refused:
        native.core().Trainer(**given | changed)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda core: core.weights(3), ValueError, "weights 0 to 2"),
        (lambda core: core.adam(0, 0, 2, 0.1, 0.0, 0.0, 1), ValueError, "members 0 to 1"),
        (lambda core: core.adam(0, 0, 1, 0.1, 0.0, 0.0, 0), ValueError, "step must be at least 1"),
        (lambda core: core.sgd(0, -1, 1, 0.1, 0.0), ValueError, "members 0 to 1"),
        (lambda core: core.draw(-1), ValueError, "must not be negative"),
        (lambda core: core.watched, ValueError, "watch=True"),
        (lambda core: core.close() or core.gradients(0, False), RuntimeError, "closed"),
        (lambda core: core.close() or core.gradients_again(), RuntimeError, "closed"),
    ],
)
def test_a_wrong_use_of_a_trainer_is_refused(use: Callable, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as refused:
        use(trainer())
    assert says in str(refused.value)


@pytest.mark.parametrize("token", [-(2**31), -1, 4, 100_000, 2**31 - 1])
@pytest.mark.parametrize("place", [0, -1])
def test_a_token_outside_the_vocabulary_is_no_address(token: int, place: int) -> None:
    core = trainer(batch=200)
    core.next_tokens.reshape(-1)[place] = token
    with pytest.raises(ValueError, match=f"tokens must be from 0 to 3: got {token}"):
        core.gradients(0, False)
    with pytest.raises(ValueError, match=f"got {token}"):
        core.gradients_again()
    assert np.isfinite(core.gradients(0, False))  # the other batch


def test_the_first_batch_is_drawn_before_its_gradients_are_asked_for() -> None:
    core = trainer([TASK.native_sampler()])
    with pytest.raises(RuntimeError, match="draw the first batch"):
        core.gradients(0, False)
    core.draw(0)
    core.gradients(BATCH, False)
    assert core.targets.sum() == pytest.approx(BATCH)


def test_samplers_and_arrays_outlive_what_python_forgets() -> None:
    samplers = [TASK.native_sampler()]
    core = trainer(samplers, 50_000)
    core.draw(0)
    samplers.clear()
    core.gradients(50_000, False)
    tokens = core.tokens
    del core  # while it draws
    expected = TASK.draws(0, 0, 1).tokens.dtype  # memory that could be handed out again
    assert expected == torch.int64
    assert ((tokens >= 0) & (tokens < 4)).all()


def leave_memory(n_bytes: int) -> None:
    """From now on this process may take so much address space more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.RLIM_INFINITY))


def use_up_threads() -> None:
    """In a process of its own: address space for the stacks of a few of a thousand threads."""
    leave_memory(2**26)
    core = native.core().Trainer(SIZES, 1, BATCH, 1000, [], [])
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    sys.exit(0 if core.gradients(0, False) == 0.0 and n_threads < 1000 else 5)


def test_more_threads_than_the_system_gives_are_fewer_threads() -> None:
    assert ended(started(use_up_threads)) == 0


def use_up_memory() -> None:
    """In a process of its own: as little address space more as the tables of a long context would take."""
    core = native.core().Trainer((2000, 10, 1, 1), 1, 8, 1, [], [])
    leave_memory(2**20)
    for again in range(2):
        try:
            core.gradients(0, False)
        except MemoryError as error:
            says = str(error)
        else:
            sys.exit(5)
        of = "1 model(s) of sizes (n_ctx 2000, d_vocab 10, heads (1, 1)) with batches of 8 sequences"
        if says != f"not enough memory to train {of}":
            sys.exit(6 + again)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.exit(0 if core.gradients(0, False) == 0.0 else 9)


def test_out_of_memory_names_what_was_asked_and_memory_may_come_back() -> None:
    process = multiprocessing.get_context("spawn").Process(target=use_up_memory)  # a fork inherits memory that is free
    process.start()
    assert ended(process) == 0


# ---- threads, forks, interrupts


@pytest.mark.parametrize("kernels", [None, np.full((4, 4), 0.1) + 0.6 * np.eye(4)], ids=["prior", "given"])
def test_any_number_of_threads_gives_the_same_bits(kernels: np.ndarray | None) -> None:
    """Given matrices are drawn in Python, piece by piece."""
    task, ends = cc.InContextTask(cc.chain_graph(5), d_vocab=4, transition_matrices=kernels), []
    for n_threads in (1, 2, 3, 5):
        models = [new_model(seed) for seed in range(3)]
        run = FusedRun(models, [task] * 3, [CONFIG] * 3, n_threads)
        losses = []
        for step in range(CONFIG.steps):
            if step == 5:
                run.snapshots(step, cc.RecordAt())
            losses.append(run.gradients().copy())
            run.update()
        run.close()
        ends.append((models, losses))
    for models, losses in ends[1:]:
        assert np.array_equal(losses, ends[0][1])
        for found, expected in zip(models, ends[0][0], strict=True):
            assert_same_weights(found, expected)


def test_trainings_and_samples_at_the_same_time_are_those_of_each_alone() -> None:
    class Drawn(cc.Task):  # drawn in Python
        graph, d_vocab = TASK.graph, TASK.d_vocab

        def draws(self, seed, first, n):
            return TASK.draws(seed, first, n)

    jobs = [lambda: trained(0), lambda: trained(1), lambda: trained(0, Drawn()), lambda: TASK.sample(10_000, seed=1)]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = [future.result() for future in [pool.submit(job) for job in jobs]]
    for found, expected in zip(together[:3], alone[:3], strict=True):
        assert_same_weights(found, expected)
    assert_same_weights(alone[2], alone[0])
    assert torch.equal(together[3].tokens, alone[3].tokens)


def train_again(expected: HookedTransformer) -> None:
    assert_same_weights(trained(), expected)


def test_a_fork_after_a_training_trains_and_so_does_one_in_the_midst_of_it() -> None:
    expected = trained()
    assert ended(started(train_again, expected)) == 0
    statuses = []
    fork = lambda step, model: statuses.append(ended(started(train_again, expected)))  # noqa: E731
    trained(record=cc.RecordAt((3,)), on_record=fork)
    assert statuses == [0]


def interrupt_a_training() -> None:
    """In a process of its own: Ctrl-C half a second into a training of hours, whose steps take seconds.

    In seconds of the processor, which do not pass while other programs have it; and no half a minute by the clock.
    """
    task, model = cc.InContextTask(cc.chain_graph(600), d_vocab=10), cc.disentangled_transformer(10, 600)
    config = cc.TrainConfig.joint(10**6, 0.01, batch_size=4096)
    pressed: list[float] = []

    def press(step: int, model: object) -> None:
        def later() -> None:
            time.sleep(0.5)
            pressed[:] = time.process_time(), time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=later, daemon=True).start()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cc.train(model, task, config, record=cc.RecordAt((0,)), on_record=press)
    except KeyboardInterrupt:
        took = time.process_time() - pressed[0], time.perf_counter() - pressed[1]
        sys.exit(0 if took[0] < 1.0 and took[1] < 30 else 7)


def test_ctrl_c_ends_a_training_within_a_second() -> None:
    assert ended(started(interrupt_a_training)) == 0


# ---- what goes wrong in the caller's code


class Fails(cc.Task):
    """Raises instead of drawing the batch of a step."""

    graph, d_vocab = TASK.graph, TASK.d_vocab

    def __init__(self, at: int) -> None:
        self.at = at

    def draws(self, seed, first, n):
        if first >= self.at * n > 0:
            raise OSError(f"no data from place {first} on")
        return TASK.draws(seed, first, n)


def test_a_task_that_fails_leaves_the_model_with_its_last_weights() -> None:
    before = threading.active_count()
    model, expected = new_model(), new_model()
    with pytest.raises(OSError, match="no data from place 600 on"):
        cc.train(model, Fails(at=3), CONFIG, progress=False)
    run = FusedRun([expected], [TASK], [CONFIG], 1)
    for _ in range(3):
        run.gradients(), run.update()
    run.close()
    assert_same_weights(model, expected)
    assert threading.active_count() == before


@pytest.mark.parametrize("at", [0, 5, 12])
def test_an_exception_in_on_record_leaves_the_model_with_its_weights(at: int) -> None:
    seen: dict[str, torch.Tensor] = {}

    def fail(step: int, model: HookedTransformer) -> None:
        seen.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        raise OSError("a disk is full")

    model = new_model()
    with pytest.raises(OSError, match="a disk is full"):
        cc.train(model, TASK, CONFIG, record=cc.RecordAt((at,)), on_record=fail, progress=False)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, seen[name]), name
    assert all(weight.grad is None for weight in model.parameters())


def test_weights_edited_in_on_record_are_trained_on_as_autograd_does() -> None:
    def edit(step: int, model: HookedTransformer) -> None:
        live_weights(model)[step % 3].mul_(0.5)

    config = cc.TrainConfig.joint(12, 0.5, optimizer="sgd", batch_size=200, warm_start=None)
    record = cc.RecordAt((0, 1, 5, 8))
    models = [new_model(), new_model().double()]
    records = [cc.train(model, TASK, config, record=record, on_record=edit, progress=False) for model in models]
    unedited = cc.train(new_model(), TASK, config, record=record, progress=False)
    assert not torch.allclose(records[0].losses, unedited.losses, rtol=1e-3)
    torch.testing.assert_close(records[0].losses, records[1].losses, rtol=1e-5, atol=0.0, check_dtype=False)
    for found, expected in zip(live_weights(models[0]), live_weights(models[1]), strict=True):
        assert_close(found, expected, 1e-5)


# ---- memory


def resident() -> float:
    """MiB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def test_two_hundred_trainings_leave_nothing_behind() -> None:
    """Each holds batches of a third of a MiB."""
    config, model = cc.TrainConfig.joint(2, 0.01, batch_size=5_000, warm_start=None), new_model()

    def train() -> None:
        run = FusedRun([model], [TASK], [config], 2)
        run.gradients()
        run.close()

    for _ in range(5):
        train()
    before = resident()
    for _ in range(200):
        train()
    assert resident() - before < 20


def train_in_a_long_context() -> None:
    task = cc.InContextTask(cc.chain_graph(1000), d_vocab=10)
    model = cc.disentangled_transformer(10, 1000)
    cc.train(model, task, cc.TrainConfig.joint(2, 0.01, batch_size=64), progress=False)
    sys.exit(0 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20 else 7)


def test_contexts_of_a_thousand_take_less_than_8_gb() -> None:
    assert ended(started(train_in_a_long_context)) == 0


def test_a_run_that_is_alive_when_python_ends_ends_quietly() -> None:
    script = """
from causal_circuits import native
core = native.core().Trainer((5, 4, 1, 1), 1, 6, 2, [], [])
weights = core.weights(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- weights of every size


def by_float32(model: HookedTransformer, tokens: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """The same from the structured forward and torch's autograd in the model's own precision."""
    model.zero_grad()
    loss = -(targets * torch.log_softmax(cc.models.structured_logits(model, tokens), dim=-1)).sum(dim=-1).mean()
    loss.backward()
    return [loss.detach(), *gradients_of(model)]


def by_core(model: HookedTransformer, tokens: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    return [torch.tensor(fused_step(model, tokens, targets)), *gradients_of(model)]


lengths = st.one_of(st.integers(2, 40), st.integers(150, 200))


@settings(max_examples=12)
@given(
    n_ctx=lengths,
    d_vocab=st.integers(2, 70),
    n_heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 200),
    scale=st.floats(-2, 0.9).map(lambda exponent: 10.0**exponent),
    gaps=st.tuples(*[st.sampled_from([0.0, 0.0, 50.0, 70.0, 300.0, 1e4])] * 3),
    seed=st.integers(0, 10_000),
)
@example(n_ctx=200, d_vocab=3, n_heads=(1, 1), batch=34, scale=1.0, gaps=(70.0, 0.0, 0.0), seed=0)
@example(n_ctx=40, d_vocab=70, n_heads=(3, 3), batch=40, scale=0.3, gaps=(0.0, 0.0, 0.0), seed=0)
def test_gradients_are_as_near_to_float64_as_rounding_lets_them(
    n_ctx, d_vocab, n_heads, batch, scale, gaps, seed
) -> None:
    """To 1e-5 of the largest entry; or to 4 times the error of torch in float32; or to what reaches patterns, rounded.

    A saturated pattern has no gradient but the difference of two equal numbers, of the size of W_U and W_U A2.
    """
    if n_ctx > 40 and batch != 34:  # the oracle's time
        n_heads, batch, d_vocab = (min(n_heads[0], 2), 1), min(batch, 3), min(d_vocab, 20)
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=scale, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for weight, gap in zip(live_weights(model), gaps, strict=True):  # what all want, and what none wants
        column = int(torch.randint(weight.shape[-1], (), generator=generator))
        weight[..., column] += gap
        weight[..., 0] -= gap / 2
    assert can_fuse(model)
    tokens = torch.randint(d_vocab, (batch, n_ctx), generator=generator)
    targets = torch.softmax(2 * torch.randn(batch, d_vocab, generator=generator), dim=-1)
    _, a2, w_u = (float(weight.abs().max()) for weight in live_weights(model))
    rounded = 4 * float(np.finfo(np.float32).eps) * w_u * (1 + a2)
    expected, in_float32 = by_autograd(model, tokens, targets)[0], by_float32(model, tokens, targets)
    found = by_core(model, tokens, targets)
    for name, core, torchs, exact in zip(("loss", "A1", "A2", "W_U"), found, in_float32, expected, strict=True):
        error, allowed = float((core - exact).abs().max()), float((torchs - exact).abs().max())
        assert error <= max(1e-5 * float(exact.abs().max()), 4 * allowed, rounded), name
