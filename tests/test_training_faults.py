"""Numbers and disks that go wrong in training, and what a loss curve says afterwards."""

import errno
import math
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from assertions import assert_refused
from interrupted import (
    CONFIG,
    TASK,
    ended,
    new_model,
    started,
)

import causal_circuits as cc
from causal_circuits.training.checkpoints import load_state


@pytest.mark.parametrize("path", ["fused", "structured"])
def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(chain_task, tmp_path, path):
    model = new_model(torch.float32 if path == "fused" else torch.float64)
    if path == "structured":
        model = model.float()
        model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
    config = cc.TrainConfig((cc.Stage(6, 0.01), cc.Stage(9, 3e38, optimizer="sgd")), batch_size=32)
    with pytest.raises(
        cc.training.DivergenceError, match=r"at step \d+: lower the learning rate \(now 3e\+38\); the last good"
    ) as e:
        cc.train(model, chain_task, config, checkpoints=cc.Checkpoints(tmp_path, every=2))
    assert 6 <= e.value.step < 12
    assert e.value.checkpoint in (4, 6, 8)
    good = cc.disentangled_transformer(4, 6, (2, 1))
    assert cc.training.restore_checkpoint(good, tmp_path) == e.value.checkpoint
    assert torch.isfinite(cc.evaluate(good, chain_task.sample(10))).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_move(chain_task, value):
    model = new_model(torch.float64)
    model.W_U.requires_grad_(True)
    calls = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * value if len(calls) == 4 else gradient

    model.unembed.W_U.register_hook(poison)
    with pytest.raises(cc.training.DivergenceError, match="a gradient became non-finite at step 3") as stopped:
        cc.train(model, chain_task, CONFIG, record=cc.RecordAt(steps=()))
    assert (stopped.value.step, stopped.value.checkpoint) == (3, None)
    assert torch.isfinite(model.W_U).all()


def test_a_model_in_half_precision_is_told_so(chain_task):
    with pytest.raises(
        cc.training.DivergenceError, match=r"became .*: train in float32, with model\.float\(\): .* float16;"
    ):
        cc.train(new_model(torch.float16), chain_task, CONFIG)


def fill_the_disk(folder: Path) -> None:
    """From step 20 on no file may grow beyond fifty bytes; exits with 7 if training says so."""

    def fill(step: int, model: object) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))

    kept = cc.Checkpoints(folder, every=8)
    try:
        cc.train(new_model(), TASK, CONFIG, record=cc.RecordAt(steps=(20,)), on_record=fill, checkpoints=kept)
    except OSError as error:
        sys.exit(7 if error.errno == errno.EFBIG else 8)


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(tmp_path):
    assert ended(started(fill_the_disk, tmp_path)) == 7
    assert load_state(tmp_path, None).step == 16
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_is_refused_before_the_first_step(chain_task, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        cc.train(new_model(), chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path / "file" / "kept"))


def losses(curve: torch.Tensor) -> cc.TrainingRecord:
    noise = 0.02 * torch.randn(len(curve), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return cc.TrainingRecord(curve.double() + noise, (), torch.empty(0, dtype=torch.float64), None, None)


@pytest.mark.parametrize(
    ("curve", "verdict", "advice"),
    [
        (torch.linspace(2.3, 1.8, 400), "falls", ""),
        (torch.cat([torch.linspace(2.3, 1.8, 6), torch.full((394,), 1.8)]), "falls", ""),  # within the first tenth
        (torch.full((400,), 2.3), "plateau", "raise the learning rate"),
        (torch.linspace(2.3, 2.9, 400), "diverges", "lower the learning rate"),
        (torch.cat([torch.linspace(2.3, 1.8, 200), torch.linspace(1.8, 2.1, 200)]), "rises", "fell and rose again"),
        (torch.full((39,), 2.3), "too short", ""),
    ],
)
def test_a_curve_is_told_for_what_it_is(curve, verdict, advice):
    health = cc.training.training_health(losses(curve))
    assert health.verdict == verdict
    assert advice in health.advice
    assert (health.advice == "") == (verdict in ("falls", "too short"))


@pytest.mark.parametrize("curve", [torch.full((200,), -1.0), torch.linspace(1, -1, 200), torch.tensor([-1.0])])
def test_a_loss_of_zero_cannot_fall_and_a_negative_one_is_none(curve):
    def record(losses: torch.Tensor) -> cc.TrainingRecord:
        return cc.TrainingRecord(losses.double(), (), losses[:0].double(), attention=None, score_gradients=None)

    assert cc.training.training_health(record(torch.zeros(200))).verdict == "converged"
    assert_refused(lambda: cc.training.training_health(record(curve)), "at least 0", "-1", "sign")


@pytest.mark.parametrize("n", [0, 1, 40, 41, 399])
def test_any_length_has_a_verdict(n):
    assert cc.training.training_health(losses(torch.full((n,), 2.0))).verdict in ("plateau", "too short")


def trained(task: cc.InContextTask, config: cc.TrainConfig) -> tuple[cc.TrainingRecord, object]:
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    return cc.train(model, task, config, progress=False), model


FOREST = cc.InContextTask(cc.random_forest(12, 0.3, seed=5), d_vocab=3, alpha=0.1)
ONE_MATRIX = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]], dtype=torch.float64).numpy()


def test_a_loss_that_was_low_from_the_first_step_is_held_to_the_lines():
    batch = FOREST.sample(4096, seed=5)
    line = cc.tasks.cross_entropy(cc.tasks.edge_posterior(FOREST, batch.tokens), batch.target_probs).mean()
    planted, untrained = cc.plant_circuit(FOREST.graph, d_vocab=3), cc.disentangled_transformer(3, 12)
    for model, verdict in ((None, "converged"), (planted, "converged"), (untrained, "no graph")):
        assert cc.training.training_health(losses(line.expand(400)), FOREST, model).verdict == verdict
    uniform = losses(torch.full((400,), math.log(3)))
    assert cc.training.training_health(uniform, FOREST).verdict in ("plateau", "unigram")


@pytest.mark.parametrize("level", [1_128_012.0, float("nan"), float("inf")])
def test_a_loss_that_no_vocabulary_could_cost_has_diverged(level):
    health = cc.training.training_health(losses(torch.full((400,), level)))
    assert health.verdict == "diverges"
    assert "lower the learning rate" in health.advice
    falling = torch.linspace(9.0, 2.5, 400)  # from a bad start, above uniform predictions to the end
    assert cc.training.training_health(losses(falling), FOREST).verdict == "falls"
    late = torch.linspace(2.3, 1.8, 400)
    late[-1] = torch.nan
    assert cc.training.training_health(losses(late)).verdict == "diverges"


def test_a_loss_far_above_uniform_predictions_has_diverged():
    record, model = trained(FOREST, cc.TrainConfig.joint(100, 100.0, batch_size=64))
    health = cc.training.training_health(record, FOREST, model)
    assert health.last > 3 * math.log(3)
    assert health.verdict == "diverges"
    assert "far above" in health.advice


def test_a_run_that_stays_at_the_unigram_line_is_told_so():
    """W_U alone can learn token frequencies, under uniform attention, and nothing of the graph."""
    record, model = trained(FOREST, cc.TrainConfig((cc.Stage(400, 0.1, train=("W_U",)),), warm_start=None))
    for health in (cc.training.training_health(record, FOREST), cc.training.training_health(record, FOREST, model)):
        assert health.verdict == "unigram"
        assert "best unigram" in health.advice


def test_a_loss_as_low_as_the_edge_posteriors_without_a_graph_is_told():
    task = cc.InContextTask(FOREST.graph, d_vocab=3, transition_matrices=ONE_MATRIX)
    record, model = trained(task, cc.TrainConfig.joint(400, 0.1, warm_start=None))
    test = task.sample(4096, seed=1)
    posterior = cc.tasks.cross_entropy(cc.tasks.edge_posterior(task, test.tokens), test.target_probs).mean()
    assert float(cc.evaluate(model, test).mean()) < float(posterior) + 0.05
    for health in (cc.training.training_health(record, task), cc.training.training_health(record, task, model)):
        assert health.verdict == "no graph"
        assert "0 of 7 edges" in health.advice
    assert cc.training.training_health(record).verdict == "falls"  # the loss alone does not tell


@pytest.mark.parametrize(("graph", "alpha"), [(cc.chain_graph(12), 1.0), (FOREST.graph, 0.1)], ids=str)
def test_good_runs_are_left_alone(graph, alpha):
    task = cc.InContextTask(graph, d_vocab=3, alpha=alpha)
    record, model = trained(task, cc.TrainConfig.warm(600, seed=1))
    for health in (cc.training.training_health(record, task, model), cc.training.training_health(record, task)):
        assert (health.verdict, health.advice) == ("falls", "")


def test_health_needs_a_record_and_a_model_of_the_task():
    record, model = trained(FOREST, cc.TrainConfig.warm(100, seed=1))
    other = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    assert_refused(lambda: cc.training.training_health(record, other), "same positions", "12", "6")
    assert_refused(lambda: cc.training.training_health(record, other, model), "(3, 6)", "(3, 12)")
