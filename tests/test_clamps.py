"""Clamped patterns and frozen blocks in training: given is given, frozen does not move, and the record says so."""

import pytest
import torch

import causal_circuits as cc

TASK = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
PARENTS = torch.eye(6).roll(-1, dims=1).tril() + torch.diag(torch.eye(6)[0])
MODELS = {
    "disentangled": lambda: cc.disentangled_transformer(3, 6, (2, 1), init_scale=0.1),
    "three layers": lambda: cc.disentangled_transformer(3, 6, (1, 2, 1), init_scale=0.1),
    "reduced": lambda: cc.models.warm_start(cc.reduced_transformer(3, 6)),
    "ordinary": lambda: cc.models.ordinary_transformer(3, 6, d_model=8, n_heads=2, n_layers=2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_clamped_layer_has_the_given_pattern_and_gets_no_update(kind):
    model, seen = MODELS[kind](), []
    before = model.blocks[0].attn.W_Q.clone(), model.blocks[1].attn.W_Q.clone()
    heads = sum(layer == 0 for layer, _ in cc.models.live_heads(model))
    config = cc.TrainConfig.joint(5, 0.1, batch_size=16, optimizer="adamw", weight_decay=0.1)
    at = cc.RecordAt(steps=(0, 5), score_gradients=False)
    look = lambda step, model: seen.append(cc.mean_attention(model, TASK.sample(4).tokens)[0])  # noqa: E731
    record = cc.train(model, TASK, config, record=at, on_record=look, attention={0: PARENTS})
    for pattern in (*seen, *record.attention[:, 0]):
        assert pattern[:heads].equal(PARENTS.expand(heads, -1, -1))
    assert model.blocks[0].attn.W_Q.equal(before[0])
    assert not model.blocks[1].attn.W_Q.equal(before[1])
    assert record.config["attention"] == {"0": PARENTS.tolist()}
    assert cc.models.attachments(model) == ()


def test_a_pattern_for_each_head_and_a_run_that_goes_on(tmp_path):
    patterns, runs = torch.stack([PARENTS, torch.eye(6)]), []
    for attention in (patterns, patterns, patterns.flip(0)):
        model, kept = MODELS["disentangled"](), cc.Checkpoints(tmp_path)
        config = cc.TrainConfig.joint(4, 0.1, batch_size=8)
        if len(runs) == 2:
            with pytest.raises(cc.training.CheckpointError):
                cc.train(model, TASK, config, attention={0: attention}, checkpoints=kept)
            return
        runs.append(cc.train(model, TASK, config, attention={0: attention}, checkpoints=kept))
        assert runs[-1].attention[-1, 0].equal(patterns)
        assert runs[-1].losses.equal(runs[0].losses)


def test_a_config_keeps_patterns_as_rows_of_numbers():
    by_layer = {0: torch.stack([PARENTS, torch.eye(6)]), 1: PARENTS[None]}
    config = cc.TrainConfig.joint(1, batch_size=8, attention=by_layer)
    record = cc.train(MODELS["disentangled"](), TASK, config)
    assert record.config["attention"] == {str(layer): pattern.tolist() for layer, pattern in by_layer.items()}
    with pytest.raises(ValueError, match="the config has patterns already"):
        cc.train(MODELS["disentangled"](), TASK, config, attention=by_layer)
    with pytest.raises(ValueError, match="no parameter bears on the loss"):
        cc.train(MODELS["reduced"](), TASK, cc.TrainConfig.joint(1), attention={1: PARENTS})


def test_shorter_sequences_have_the_first_rows_of_a_pattern():
    model = MODELS["ordinary"]()
    with cc.training.clamped_attention(model, {0: PARENTS}):
        assert model.run_with_cache(TASK.sample(2).tokens[:, :4])[1]["pattern", 0][0, 0].equal(PARENTS[:4, :4])


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({2: PARENTS}, r"layers of the model, 0 \.\. 1: got 2"),
        ({-1: PARENTS}, r"layers of the model, 0 \.\. 1: got -1"),
        ({0: PARENTS * torch.nan}, "must be probabilities"),
        ({0: torch.eye(5)}, r"must be \[n_ctx, n_ctx\] = \[6, 6\] or \[2, 6, 6\].*got \[5, 5\]"),
        ({0: PARENTS.T}, "query 0 attend to key 1"),
        ({0: 2 * PARENTS}, "must be probabilities"),
    ],
)
def test_what_is_no_pattern_is_refused_by_name(attention, message):
    with pytest.raises(ValueError, match=message):
        cc.train(MODELS["disentangled"](), TASK, cc.TrainConfig.joint(1), attention=attention)


def test_frozen_blocks_do_not_move_and_the_others_do():
    model = cc.disentangled_transformer(3, 6, (1, 2, 1), init_scale=0.1)
    before = {name: p.detach().clone() for name, p in cc.training.trainable_parameters(model).items()}
    blocks = {"W_Q.1": [("position", "L0H0.token")], "W_U": [("token",), ("L2H0.token",)]}
    record = cc.train(model, TASK, cc.TrainConfig.joint(3, 0.1, batch_size=16, blocks=blocks))
    moved = {name: p != before[name] for name, p in cc.training.trainable_parameters(model).items()}
    slots = {name: slot.slice for name, slot in cc.models.slots(model).items()}
    expected = torch.zeros_like(moved["W_Q.1"])
    expected[:, slots["position"], slots["L0H0.token"]] = True
    rows = torch.zeros(model.cfg.d_model, dtype=torch.bool)
    rows[slots["token"]] = rows[slots["L2H0.token"]] = True
    for found, may_move in ((moved["W_Q.1"], expected), (moved["W_U"].any(dim=1), rows)):
        assert found.any()
        assert not (found & ~may_move).any()
    assert record.config["blocks"]["W_U"] == [["token"], ["L2H0.token"]]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"W_Q.7": [("token", "token")]}, r"trained parameters, W_Q\.0, W_Q\.1, W_U: got 'W_Q\.7'"),
        ({"W_Q.0": [("token",)]}, r"a block of W_Q\.0 is named by 2 of the slots"),
        ({"W_U": [("L5H0.token",)]}, "a block of W_U is named by 1 of the slots token, position"),
    ],
)
def test_blocks_that_are_none_are_refused_by_name(blocks, message):
    with pytest.raises(ValueError, match=message):
        cc.train(MODELS["disentangled"](), TASK, cc.TrainConfig.joint(1, blocks=blocks))
    if "W_U" in blocks:
        with pytest.raises(ValueError, match="those of a disentangled model"):
            cc.train(MODELS["ordinary"](), TASK, cc.TrainConfig.joint(1, blocks=blocks))
        with pytest.raises(ValueError, match="weight decay would move"):
            cc.TrainConfig.joint(1, blocks=blocks, optimizer="adamw", weight_decay=0.1)
