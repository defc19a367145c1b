"""What is measured during training: when, through which hooks, and the record on disk."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import oracles
import pytest
import torch
from assertions import assert_close, assert_refused
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.models import logits
from causal_circuits.training import mean_loss


def test_every_and_listed_steps() -> None:
    assert cc.RecordAt.every(5, until=12).steps == (0, 5, 10, 12)
    assert cc.RecordAt.every(7, until=20).within(20)[-1] == 20
    assert cc.RecordAt.every(5, until=10).steps == (0, 5, 10)
    assert cc.RecordAt.every(5, until=0).steps == (0,)
    assert cc.RecordAt(steps=(7, 0, 7, 3, 99)).within(10) == (0, 3, 7)
    assert cc.RecordAt(steps=(99,)).within(10) == ()


@given(n=st.integers(2, 30), n_steps=st.integers(1, 5000))
def test_log_spaced_steps_hold_the_first_and_the_last_state(n: int, n_steps: int) -> None:
    steps = cc.RecordAt(n_log_spaced=n).within(n_steps)
    assert steps[0] == 0
    assert steps[-1] == n_steps
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= n


def test_bad_steps_are_refused() -> None:
    assert_refused(lambda: cc.RecordAt(steps=(3, -2)), "at least 0", "-2")
    assert_refused(lambda: cc.RecordAt.every(0, until=10), "interval", "0")
    assert_refused(lambda: cc.RecordAt(layers=()), "layers", "None")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_watched_attention_equals_autograd_of_the_oracle(chain_task, n_heads, plain) -> None:
    model = cc.disentangled_transformer(4, 6, n_heads, init_scale=0.4, seed=2, dtype=torch.float64)
    batch = chain_task.sample(9, seed=0).to("cpu", torch.float64)
    run = oracles.disentangled_forward(*oracles.weights_of(model, 4, 6, n_heads), batch.tokens, 4)
    loss = oracles.cross_entropies(run.logits, batch.target_probs).mean()
    loss.backward()
    with cc.recording.watch_attention(model) as watched:
        output = model(batch.tokens)[:, -1] if plain else logits(model, batch.tokens)
        oracles.cross_entropies(output, batch.target_probs).mean().backward()
    attention, gradients = watched.attention(), watched.score_gradients()
    assert attention.shape == gradients.shape == (2, max(n_heads), 6, 6)
    for (layer, head), pattern in run.patterns.items():
        assert_close(attention[layer, head], pattern.mean(dim=0), 1e-10)
        assert_close(gradients[layer, head], -run.scores[layer, head].grad.sum(dim=0), 1e-10)
    assert torch.allclose(gradients.sum(dim=-1), torch.zeros(()).double(), atol=1e-12), (
        "scores are defined up to a constant"
    )


def test_layers_keep_their_place_when_some_are_frozen(random_model, chain_task) -> None:
    """The score gradient does not depend on which weights are to be trained."""
    batch = chain_task.sample(10, seed=0)
    expected = cc.training.take_snapshot(random_model, batch).score_gradients
    random_model.blocks[0].attn.W_Q.requires_grad_(False)
    found = cc.training.take_snapshot(random_model, batch).score_gradients
    assert found.shape == expected.shape
    assert_close(found[1], expected[1], 1e-6)


@pytest.fixture
def record(chain_task: cc.InContextTask) -> cc.TrainingRecord:
    config, what = cc.TrainConfig.joint(4, 0.01, batch_size=8), cc.RecordAt.every(2, until=4, weight_gradients=True)
    return cc.train(cc.disentangled_transformer(4, 6), chain_task, config, record=what, progress=False)


NO_MATRICES = {"attention": None, "score_gradients": None, "weight_gradients": None}


@pytest.mark.parametrize("without", [{}, NO_MATRICES], ids=["whole", "losses"])
def test_records_come_back_from_disk(record: cc.TrainingRecord, tmp_path: Path, without: dict[str, None]) -> None:
    record = replace(record, **without)
    again = cc.TrainingRecord.load(record.save(tmp_path / "deep" / "folder"))
    for name in ("losses", "recorded_losses", "attention", "score_gradients", "weight_gradients"):
        assert name in without or torch.equal(getattr(again, name), getattr(record, name)), name
    for name in ("steps", "config", "seconds", "sequences_per_s", "path", "layers", *without):
        assert getattr(again, name) == getattr(record, name), name
    assert {path.name for path in (tmp_path / "deep" / "folder").iterdir()} == {"record.safetensors", "record.json"}


@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_the_fused_step_records_what_hooks_do(n_heads: tuple[int, int]) -> None:
    """Of layer 1 the last row, on which the loss depends; a hook that does nothing asks for the structured path."""
    task, every = cc.InContextTask(cc.pairs_graph(6), d_vocab=4, alpha=0.3), tuple(range(7))
    config, records, models = cc.TrainConfig.joint(6, 0.5, optimizer="sgd", batch_size=40), [], []
    for path in ("fused", "structured"):
        model = cc.disentangled_transformer(4, 6, n_heads, init_scale=0.3, seed=2)
        if path == "structured":
            model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
        records.append(cc.train(model, task, config, record=cc.RecordAt(every, weight_gradients=True)))
        models.append(model)
        assert records[-1].path == path
    own, hooks = records
    for name in ("attention", "score_gradients", "weight_gradients"):
        mine, theirs = getattr(own, name), getattr(hooks, name)
        assert mine.shape == theirs.shape == (7, 2, max(n_heads), 6, 6)
        assert_close(mine[:, 0], theirs[:, 0], 1e-5)
        assert_close(mine[:, 1, :, -1], theirs[:, 1, :, -1], 1e-5)
    assert_close(own.recorded_losses, hooks.recorded_losses, 1e-6)
    assert_close(own.losses, hooks.losses, 1e-6)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("path", ["structured", "plain"])
def test_recorded_weight_gradients_are_those_of_a_pattern_that_is_a_leaf(path, random_model, chain_task) -> None:
    batch = chain_task.sample(50, seed=4)
    point = "blocks.0.attn.hook_pattern"
    _, cache = random_model.run_with_cache(batch.tokens)
    leaf = cache[point].detach().requires_grad_()
    with random_model.hooks(fwd_hooks=[(point, lambda pattern, hook: leaf)]):
        mean_loss(random_model, batch).backward()
    random_model.zero_grad(set_to_none=True)
    what = cc.RecordAt(attention=False, score_gradients=False, weight_gradients=True)
    ignored = [("blocks.0.hook_resid_pre", lambda residual, hook: None)] if path == "plain" else []
    with random_model.hooks(fwd_hooks=ignored):
        recorded = cc.training.take_snapshot(random_model, batch, record=what)
    assert recorded.attention is recorded.score_gradients is None
    assert_close(recorded.weight_gradients[0], -leaf.grad.sum(dim=0).tril(), 1e-5)


def train_recorded(task: cc.InContextTask, **what: object) -> cc.TrainingRecord:
    return cc.train(
        cc.disentangled_transformer(task.d_vocab, task.n_ctx, init_scale=0.3, seed=1),
        task,
        cc.TrainConfig.joint(4, 0.05, batch_size=16),
        record=cc.RecordAt(steps=(0, 4), **what),
        progress=False,
    )


@pytest.mark.parametrize("cut", ["pattern", "z"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_without_a_gradient_keeps_its_place(layer: int, cut: str, tmp_path: Path) -> None:
    """A hook replaces a pattern by itself, cut off from the graph: nothing changes but the path of the gradient."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    batch = task.sample(30, seed=0)
    model = cc.disentangled_transformer(3, 6, init_scale=0.3, seed=1)
    whole = cc.training.take_snapshot(model, batch)
    model.add_hook(f"blocks.{layer}.attn.hook_{cut}", lambda value, hook: value.detach())
    snapshot = cc.training.take_snapshot(model, batch, record=cc.RecordAt(weight_gradients=True))
    other = 1 - layer
    assert snapshot.layers == (0, 1)
    for found in (snapshot.score_gradients, snapshot.weight_gradients):
        assert found.shape == snapshot.attention.shape
        assert found[layer].tril().isnan()[0].tril().any()
        if layer == 0:
            assert not found[other].isnan().any()
    if layer == 0:
        assert_close(snapshot.score_gradients[other], whole.score_gradients[other], 1e-5)
    record = cc.train(model, task, cc.TrainConfig.joint(4, 0.05, batch_size=16), record=cc.RecordAt((0, 4)))
    again = cc.TrainingRecord.load(record.save(tmp_path))
    for kept in (record, again):
        assert kept.score_gradients.shape == kept.attention.shape
        assert_refused(lambda kept=kept: kept.of_layer("score_gradients", layer), f"layer {layer}", "NaN", "hook")
        assert kept.of_layer("attention", layer).shape == (2, 1, 6, 6)


def test_nothing_that_can_be_differentiated_is_all_nan(chain_task: cc.InContextTask) -> None:
    model = cc.plant_circuit(chain_task.graph, d_vocab=4).requires_grad_(False)
    model.add_hook("unembed.hook_out", lambda logits, hook: logits.detach())
    snapshot = cc.training.take_snapshot(model, chain_task.sample(8, seed=0))
    assert snapshot.score_gradients.isnan().all()
    assert not snapshot.attention.isnan().any()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("layers", "kept"), [(None, (0, 1)), ((0,), (0,)), ((1,), (1,)), ((1, 0, 1), (0, 1))])
def test_a_record_knows_its_layers(layers, kept, streamed, tmp_path) -> None:
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4)
    every = train_recorded(task)
    record = train_recorded(task, layers=layers, folder=tmp_path / "grows" if streamed else None)
    again = cc.TrainingRecord.load(tmp_path / "grows" if streamed else record.save(tmp_path))
    for found in (record, again):
        assert found.layers == kept
        for layer in kept:
            for name in ("attention", "score_gradients"):
                assert_close(found.of_layer(name, layer), every.of_layer(name, layer), 1e-5)
        missing = 2 if len(kept) == 2 else 1 - kept[0]
        for refused in (
            partial(found.of_layer, "attention", missing),
            partial(figures.graph_film_html, found, task.graph, layer=missing),
        ):
            assert_refused(refused, f"{kept}", f"layer {missing}")
    assert_refused(lambda: record.of_layer("weight_gradients", kept[0]), "weight_gradients=True")
    assert_refused(lambda: record.of_layer("losses", kept[0]), "quantity", "losses")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "structured"])
@pytest.mark.parametrize("layers", [(5,), (0, 5)])
def test_layers_that_are_not_there_are_refused(chain_task, dtype, layers) -> None:
    model, record = cc.disentangled_transformer(4, 6, dtype=dtype), cc.RecordAt(layers=layers)
    config, batch = cc.TrainConfig.joint(4, batch_size=8), chain_task.sample(4, seed=0).to("cpu", dtype)
    assert_refused(lambda: cc.train(model, chain_task, config, record=record), "0 .. 1", "5")
    assert_refused(lambda: cc.training.take_snapshot(model, batch, record=record), "0 .. 1", "5")


def test_records_whose_parts_do_not_fit_are_refused(record: cc.TrainingRecord) -> None:
    fewer = {**NO_MATRICES, "score_gradients": record.score_gradients[:, 1:]}
    assert_refused(lambda: replace(record, **fewer), "score_gradients", "layers (0, 1)", "[3, 1,")
    assert_refused(lambda: replace(record, attention=record.attention[1:]), "attention")


def test_records_of_before_are_not_mixed_with_these(record: cc.TrainingRecord, tmp_path: Path) -> None:
    """They held the gradient itself, and did not say so."""
    record.save(tmp_path)
    plain = json.loads((tmp_path / "record.json").read_text())
    for other in ({key: value for key, value in plain.items() if key != "format"}, None, []):
        (tmp_path / "record.json").write_text(json.dumps(other))
        words = str(tmp_path), "another version" if other else "record"
        assert_refused(lambda: cc.TrainingRecord.load(tmp_path), *words)


def test_recorded_and_measured_gradients_have_one_sign_and_with_beta0_one_unit() -> None:
    task = cc.InContextTask(cc.chain_graph(12), d_vocab=3)
    batch, beta0 = task.sample(2000, seed=1).to("cpu", torch.float64), 1e-5
    model = cc.models.warm_start(cc.reduced_transformer(3, 12, dtype=torch.float64), beta0)
    snapshot = cc.training.take_snapshot(model, batch, record=cc.RecordAt(weight_gradients=True))
    record = cc.train(
        cc.reduced_transformer(3, 12, dtype=torch.float64),
        task,
        cc.TrainConfig.joint(1, 1e-9, batch_size=10_000, warm_start=beta0),
        record=cc.RecordAt((0,), weight_gradients=True),
    )
    for of, found in (("scores", "score_gradients"), ("weights", "weight_gradients")):
        in_nats = cc.measured_gradient(batch.tokens, batch.target_probs, of).value * beta0 / (3 * 12)
        assert_close(getattr(snapshot, found)[0, 0], in_nats, 1e-3)
        own, g = getattr(record, found)[0, 0, 0], cc.predicted_gradient(task).value
        compared = cc.compare_gradient(own, g, task.graph, of=of)
        assert compared.correlation > 0.9
        assert compared.rows_right == 1.0
