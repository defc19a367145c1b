"""Mistakes that no other test makes: each is named in one message, with the rule, the value and what to do."""

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, new_model

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.display import table_text
from causal_circuits.interventions.measure import other_positions
from causal_circuits.tasks import subset_loss

TASK = cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)
TWO_IN_DEGREES = cc.graph_from_parents([None, 0, (0, 1), (1, 2)])


def halves(n: int, in_degree: int) -> np.ndarray:
    return np.full((n, *[2] * in_degree, 2), 0.5)


def unequal_kernels() -> object:
    kernels = {1: halves(3, 1), 2: halves(4, 2)}
    return cc.InContextTask(TWO_IN_DEGREES, d_vocab=2, kernels=kernels).sample(5)


def paths_through_mlps() -> object:
    model, tokens = cc.ordinary_transformer(4, 6, d_model=4, d_mlp=8), TASK.sample(4, seed=0).tokens
    return cc.patch_paths(model, tokens, tokens.flip(0), lambda log_probs: log_probs.sum())


def film_strip_of_no_frames() -> object:
    record = cc.train(new_model(), TASK, cc.TrainConfig.joint(2, batch_size=4), record=cc.RecordAt((0,)))
    return figures.plot_film_strip(record, TASK.graph, n_frames=0)


REFUSED: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "negative seed of a graph": (lambda: cc.random_forest(6, seed=-1), ("non-negative integer", "-1")),
    "seed that is no number": (lambda: TASK.sample(2, seed="x"), ("seed must be an integer", "'x'")),
    "negative seed of a training": (lambda: cc.TrainConfig(CONFIG.stages, seed=-1), ("seed", "-1")),
    "recipe of one step": (lambda: cc.default_stages(1), ("at least 2 steps", "got 1")),
    "alpha that is no number": (
        lambda: cc.InContextTask(cc.chain_graph(4), d_vocab=3, alpha="much").sample(1),
        ("alpha must be a number", "numpy array", "'much'"),
    ),
    "unequal numbers of kernels": (unequal_kernels, ("equally many",)),
    "parent that the target has not": (lambda: subset_loss(TASK, TASK.sample(2), (1,)), ("0 .. 0", "[1]")),
    "targets of another vocabulary": (
        lambda: cc.Batch(TASK.sample(3).tokens, torch.full((3, 2), 0.5)).check(4, 6),
        ("[3, 4]", "[3, 2]"),
    ),
    "reduced model of two last heads": (
        lambda: cc.reduced_transformer(3, 6, (1, 2)),
        ("one head in layer 1", "(1, 2)"),
    ),
    "paths through an MLP": (paths_through_mlps, ("MLPs", "patch_activations")),
    "permuting one position": (lambda: other_positions(3, 1, seed=0), ("at least 2", "got 3 of 1")),
    "film strip of no frames": (film_strip_of_no_frames, ("at least 1 frame", "n_frames=0")),
    "width of the target's law": (
        lambda: cc.recover_graph(TASK.sample(40).tokens, TASK.sample(40).target_probs, d_vocab=5),
        ("width of target_probs, 4", "got 5"),
    ),
    "rivals of several parents": (
        lambda: cc.closest_rivals(torch.zeros(3, 3), TWO_IN_DEGREES),
        ("at most one parent", "conditional_information"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_named(case: str) -> None:
    call, words = REFUSED[case]
    assert_refused(call, *words)


def test_a_table_of_nothing_says_so() -> None:
    assert table_text([]) == table_text([{}]) == "no rows"


def test_roots_that_share_a_law_have_it_also_without_a_counted_stream() -> None:
    """Concentrations below .09 are drawn by numpy: within a sequence all roots follow one law, which is drawn anew."""
    roots = cc.graph_from_parents([(), (), (), (), (0,), (1,)])
    tokens = cc.InContextTask(roots, d_vocab=2, alpha=0.05, roots="shared").sample(4000, seed=1).tokens[:, :4]
    alike = (tokens == tokens[:, :1]).all(dim=1).double().mean()
    # Dirichlet(.05, .05): P(four alike) = 2 E[p^4] = 2 (.05 1.05 2.05 3.05) / (.1 1.1 2.1 3.1)
    expected = 2 * (0.05 * 1.05 * 2.05 * 3.05) / (0.1 * 1.1 * 2.1 * 3.1)
    assert abs(float(alike) - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5


def test_a_second_ctrl_c_stops_at_once(tmp_path) -> None:
    """Without a checkpoint of the step at hand, and with Python's own handler back."""
    before = signal.getsignal(signal.SIGINT)

    def press_twice(step: int, model: object) -> None:
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    kept, record = cc.Checkpoints(tmp_path, every=4), cc.RecordAt((10,))
    with pytest.raises(KeyboardInterrupt) as stopped:
        cc.train(new_model(), TASK, CONFIG, record=record, on_record=press_twice, checkpoints=kept)
    assert str(stopped.value) == ""
    assert cc.restore_checkpoint(new_model(), tmp_path) == 8
    assert signal.getsignal(signal.SIGINT) is before
