"""The training loop: what moves, what does not, and that every path gives the same weights."""

import math

import pytest
import torch
from assertions import assert_close, assert_refused, hooks_of, unchecked_types
from interrupted import assert_same_weights

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.models import HookedTransformer
from causal_circuits.training import gradient_step, mean_loss, trainable_parameters
from causal_circuits.training.progress import parents_found
from causal_circuits.training.steps import TRAINING_STREAM

NOTHING = cc.RecordAt(steps=())


def weights(model: HookedTransformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(
    task: cc.InContextTask, config: cc.TrainConfig, n_heads: tuple[int, int] = (1, 1), **options: object
) -> HookedTransformer:
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads, init_scale=0.1, seed=7)
    cc.train(model, task, config, **{"record": NOTHING, "progress": False, **options})
    return model


def test_the_default_recipe_finds_a_small_forest_from_zero() -> None:
    task = cc.InContextTask(cc.random_forest(8, 0.4, seed=7), d_vocab=3, alpha=0.1)
    seen: dict[int, float] = {}

    def look(step: int, model: HookedTransformer) -> None:
        seen[step] = sum(float(parameter.detach().abs().sum()) for parameter in trainable_parameters(model).values())

    config, model = cc.TrainConfig(cc.training.default_stages(1800), batch_size=256), cc.disentangled_transformer(3, 8)
    cc.train(model, task, config, record=cc.RecordAt((0, 1800)), progress=False, on_record=look)
    assert seen[0] == 0.0 < seen[1800]  # nothing is written in
    attention = cc.mean_attention(model, task.sample(2_000, seed=98).tokens)[0, 0]
    assert all(attention[child].argmax() == parent for parent, child in cc.latent_edges(task.graph))


def test_a_reduced_model_begins_with_a2_written_in_by_default() -> None:
    task, model = cc.InContextTask(cc.chain_graph(5), d_vocab=3), cc.reduced_transformer(3, 5)
    seen = []
    look = lambda step, model: seen.append(model.W_Q.detach()[1, 0].sum())  # noqa: E731
    record = cc.train(model, task, record=cc.RecordAt((0,)), on_record=look)
    assert (float(seen[0]), record.config["warm_start"]) == (12.0, 4.0)


def test_a_record_holds_every_step_and_every_asked_state(chain_task: cc.InContextTask) -> None:
    model = cc.disentangled_transformer(4, 6, (2, 1))
    record = cc.train(
        model, chain_task, cc.TrainConfig.joint(9, 0.05, batch_size=16), record=cc.RecordAt.every(3, 9), progress=False
    )
    assert record.losses.shape == (9,)
    assert record.losses.dtype == torch.float64
    assert record.steps == (0, 3, 6, 9)
    assert record.attention.shape == record.score_gradients.shape == (4, 2, 2, 6, 6)
    assert record.path == "fused"
    assert record.seconds > 0
    assert record.sequences_per_s == pytest.approx(9 * 16 / record.seconds)
    assert record.config["batch_size"] == 16
    for index, step in enumerate(record.steps[:-1]):  # step s is measured on the batch of step s, before the update
        assert record.recorded_losses[index] == pytest.approx(float(record.losses[step]), rel=1e-5)
    assert not record.attention[0].triu(1).any()
    uniform = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    one_step = cc.TrainConfig.joint(1, 0.01, batch_size=4, warm_start=None)
    untrained = cc.train(cc.disentangled_transformer(4, 6), chain_task, one_step, progress=False)
    assert_close(untrained.attention[0, 0, 0], uniform, 1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_recording_does_not_change_training(chain_task: cc.InContextTask, fused: bool) -> None:
    task = chain_task
    config = cc.TrainConfig(stages=(cc.Stage(3, 0.1), cc.Stage(3, 0.05, optimizer="sgd")), batch_size=32)
    dtype = torch.float32 if fused else torch.float64
    models, records = [], []
    for what in (cc.RecordAt.every(1, 6), NOTHING):
        models.append(cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.1, seed=7, dtype=dtype))
        records.append(cc.train(models[-1], task, config, record=what, progress=False))
    assert [record.path for record in records] == ["fused" if fused else "structured"] * 2
    assert_same_weights(*models)
    assert torch.equal(records[0].losses, records[1].losses)
    assert records[1].steps == ()
    assert records[1].attention is None


def test_training_touches_no_global_randomness(chain_task: cc.InContextTask) -> None:
    before = torch.get_rng_state()
    trained(chain_task, cc.TrainConfig.joint(2, 0.05, batch_size=8), record=cc.RecordAt())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 5])
def test_training_never_sees_the_sequences_that_are_sampled_for_evaluation(chain_task, seed) -> None:
    """Neither task.sample(n, seed=s) nor task.sample(n, seed=(s, 0)) is the first batch of a run with seed s."""
    model = cc.disentangled_transformer(4, 6, init_scale=0.5)
    config = cc.TrainConfig.joint(1, 0.01, batch_size=64, seed=seed, warm_start=None)
    losses = [float(cc.evaluate(model, chain_task.sample(64, seed=s)).mean()) for s in (seed, (seed, 0))]
    first = float(cc.train(model, chain_task, config, record=NOTHING, progress=False).losses[0])
    assert all(abs(first - loss) > 1e-4 for loss in losses)


def test_a_hook_of_the_users_own_fires_and_stays(chain_task: cc.InContextTask) -> None:
    model, fired = cc.disentangled_transformer(4, 6), []
    model.add_hook("blocks.1.attn.hook_z", lambda z, hook: fired.append(1))
    before = hooks_of(model)
    cc.train(model, chain_task, cc.TrainConfig.joint(3, 0.05, batch_size=8), record=NOTHING, progress=False)
    assert len(fired) == 3
    assert hooks_of(model) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen_by", ["the stage", "the user"])
@pytest.mark.parametrize("n_heads", [(2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("names", [("W_Q.0",), ("W_Q.1",), ("W_U",), ("W_Q.0", "W_U")], ids=str)
def test_only_what_is_to_be_trained_moves(chain_task, names, n_heads, frozen_by) -> None:
    """Neither embeddings and identities nor the parts of W_Q that pad a head or a layer, also with weight decay."""
    model = cc.disentangled_transformer(4, 6, n_heads, init_scale=0.3, seed=7)
    before, train = weights(model), names if frozen_by == "the stage" else None
    for name, parameter in trainable_parameters(model).items():
        parameter.requires_grad_(train is not None or name in names)
    stage = cc.Stage(3, 0.1, train=train, optimizer="adamw", weight_decay=0.1)
    cc.train(model, chain_task, cc.TrainConfig((stage,), batch_size=32, warm_start=None), progress=False)
    after = weights(model)
    files = {"W_Q.0": "blocks.0.attn.W_Q", "W_Q.1": "blocks.1.attn.W_Q", "W_U": "unembed.W_U"}
    assert {n for n, value in after.items() if not torch.equal(value, before[n])} == {files[name] for name in names}
    for layer, width in enumerate((10, 10 * (1 + n_heads[0]))):
        after[f"blocks.{layer}.attn.W_Q"][: n_heads[layer], :width, :width] = 0.0
        assert not after[f"blocks.{layer}.attn.W_Q"].any()


def test_evaluation_equals_the_mean_loss_also_piece_by_piece(random_model, chain_task, monkeypatch) -> None:
    batch = chain_task.sample(50, seed=0)
    one = cc.evaluate(random_model, batch)
    monkeypatch.setattr("causal_circuits.tasks.batch.CHUNK", 7)
    pieces = cc.evaluate(random_model, batch)
    assert one.shape == (50,)
    assert one.dtype == torch.float64
    assert_close(pieces, one, 1e-6)
    assert float(one.mean()) == pytest.approx(mean_loss(random_model, batch).item(), rel=1e-6)
    assert gradient_step(random_model, batch) == pytest.approx(float(one.mean()), rel=1e-5)


def test_bad_stages_are_refused() -> None:
    for rate in (0.0, math.nan, math.inf):
        assert_refused(lambda rate=rate: cc.Stage(5, rate), "learning_rate", "positive and finite", str(rate))
    assert_refused(lambda: cc.Stage(5, 0.1, train=()), "train", "None")
    assert_refused(lambda: cc.Stage(5, 0.1, optimizer="lion"), "adam, adamw, sgd", "'lion'")
    assert_refused(lambda: cc.Stage(5, 0.1, schedule="step"), "constant, cosine, linear", "'step'")


def test_bad_configs_are_refused(chain_task: cc.InContextTask) -> None:
    assert_refused(lambda: cc.TrainConfig(stages=()), "at least one stage")
    model = cc.disentangled_transformer(4, 6)
    config = cc.TrainConfig(stages=(cc.Stage(1, 0.1, train=("W_K.0",)),))
    assert_refused(lambda: cc.train(model, chain_task, config), "'W_K.0'", "W_Q.0, W_Q.1, W_U")
    reduced = cc.TrainConfig(stages=(cc.Stage(1, 0.1, train=("W_U",)),))
    assert_refused(lambda: cc.train(cc.reduced_transformer(4, 6), chain_task, reduced), "'W_U'", "W_Q.0, W_Q.1")
    for other in (cc.disentangled_transformer(4, 7), cc.disentangled_transformer(5, 6)):
        assert_refused(lambda m=other: cc.train(m, chain_task), "same (d_vocab, n_ctx)", "(4, 6)")


def test_everything_works_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[cc.TrainingRecord, torch.Tensor]:
        task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
        record = cc.train(cc.disentangled_transformer(3, 6), task, cc.TrainConfig.joint(3, batch_size=32))
        return record, task.sample(700, seed=4).tokens

    fused, tokens = run()
    monkeypatch.setenv("CAUSAL_CIRCUITS_PURE", "1")
    monkeypatch.setattr(native, "_module", native._module.__wrapped__)  # read anew
    pure, same_tokens = run()
    assert (pure.path, fused.path) == ("structured", "fused")
    assert torch.equal(same_tokens, tokens)
    assert_close(pure.losses, fused.losses, 1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_an_ordinary_transformer_trains_as_torch_would(chain_task, optimizer, schedule) -> None:
    model, other = (cc.models.ordinary_transformer(4, 6, d_model=5, dtype=torch.float64) for _ in range(2))
    stage = cc.Stage(5, 0.01, None, optimizer.__name__.lower(), schedule, 0.1)
    cc.train(model, chain_task, cc.TrainConfig((stage,), batch_size=16, seed=1), record=NOTHING)
    by_hand = optimizer(other.parameters(), lr=1.0, weight_decay=0.1)
    for step in range(5):
        batch = chain_task.draws((1, TRAINING_STREAM), 16 * step, 16).to("cpu", torch.float64)
        by_hand.zero_grad()
        (-(batch.target_probs * other(batch.tokens)[:, -1].log_softmax(-1)).sum(-1).mean()).backward()
        left = {"constant": 1.0, "linear": 1 - step / 5, "cosine": (1 + math.cos(math.pi * step / 5)) / 2}
        by_hand.param_groups[0]["lr"] = 0.01 * left[schedule]
        by_hand.step()
    for name, parameter in other.named_parameters():
        if not name.endswith("b_K"):  # has no effect; its gradient is rounding
            assert torch.allclose(dict(model.named_parameters())[name], parameter, atol=1e-6), name


def test_a_warm_start_of_an_ordinary_transformer_is_refused(chain_task: cc.InContextTask) -> None:
    model = cc.models.ordinary_transformer(4, 6, d_model=5)
    assert_refused(lambda: cc.train(model, chain_task, cc.TrainConfig.warm(2)), "ordinary", "warm_start=None")
    assert_refused(lambda: cc.train(model, chain_task), "ordinary", "no default recipe", "TrainConfig.joint")
    named = cc.TrainConfig.joint(2, train=("W_Q.0",), warm_start=None)
    assert_refused(lambda: cc.train(model, chain_task, named), "'W_Q.0'", "blocks.0.attn.W_Q")


def test_uniform_attention_has_found_no_parent_and_a_planted_one_all() -> None:
    """Not even those of a star, whose parent stands first in every row."""
    task, record = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 0, 0]), d_vocab=3), cc.RecordAt(layers=(0,))
    batch = task.sample(64, seed=0)
    for model, n in ((cc.disentangled_transformer(3, 6), 0), (cc.plant_circuit(task.graph, d_vocab=3), 4)):
        measured = cc.training.take_snapshot(model, batch, record=record)
        assert parents_found([task], [measured], record) == f"training, {n} of 4 parents"


def test_a_bar_tells_loss_and_parents_and_nothing_is_said_where_nobody_watches(chain_task, capsys) -> None:
    config = cc.TrainConfig(stages=cc.training.default_stages(120), batch_size=64)
    records = []
    for progress in (True, None, False):
        model = cc.disentangled_transformer(chain_task.d_vocab, chain_task.n_ctx)
        with unchecked_types():
            records.append(cc.train(model, chain_task, config, progress=progress))
        said = capsys.readouterr().err
        assert ("of 4 parents" in said) == ("loss=" in said) == (progress is True)
    assert torch.equal(records[0].losses, records[1].losses)
