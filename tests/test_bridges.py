"""Bridges, TransformerLens 4's models: every tool that takes any model takes them, with a bridge's own hooks as oracle.

The second oracle is the same model as a HookedTransformer of ours (`as_bridge` is held to it in test_hooked).
"""

from collections.abc import Callable

import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused
from test_attachments import BATCH, OTHER, TASK, hold, of_use
from users import bridge

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, as_bridge
from causal_circuits.training import take_snapshot


@pytest.mark.parametrize(
    "fields", [{}, {"use_attn_scale": False}, {"attn_scale": 3.0}, {"n_heads": 1, "d_head": 7}], ids=str
)
def test_every_tool_answers_for_a_bridge_as_its_own_hooks_do(fields):
    """Those of every other config field: test_attachments, where ours does not know the field."""
    assert set(hold(bridge(**fields))) == {"patch_paths"}  # a bridge has no split inputs


def scores(model: HookedTransformer) -> list[float]:
    heads = cc.detect_induction_heads(model, TASK, tokens=BATCH.tokens)
    return [score for head in heads for score in (head.parent_score, head.induction_score, head.previous_token_score)]


NUMBERS: dict[str, Callable[[HookedTransformer], object]] = {
    "heads": scores,
    "extraction": lambda model: [found.weight for found in cc.extract_graph(model, batch=BATCH).candidates],
    "ablation": lambda model: [cc.ablate_heads(model, BATCH, [(layer, 0)], method="mean").loss for layer in (0, 1)],
    "knock-out": lambda model: cc.knock_out_edges(model, BATCH, layer=0).effect.nan_to_num(),
    "knock-out of layer 1": lambda model: cc.knock_out_edges(model, BATCH, layer=1).effect.nan_to_num(),
    "patching": lambda model: cc.patch_activations(model, BATCH.tokens, OTHER.tokens, of_use).metric,
    "scrubbing": lambda model: [cc.scrub_hypothesis(model, BATCH, TASK, where=where).loss for where in WHERE],
    "score gradients": lambda model: torch.stack(list(take_snapshot(model, BATCH).score_gradients)),
    "copying": lambda model: [cc.heads.copying_score(model, layer, 0, read_by="logits") for layer in (0, 1)],
}
WHERE = ("everywhere", "children")


@pytest.mark.parametrize("tool", NUMBERS)
def test_a_bridge_gets_the_numbers_of_the_same_model(tool):
    model = cc.disentangled_transformer(3, 6, init_scale=0.7, seed=3, dtype=torch.float64)
    other = as_bridge(model)
    with assert_given_back(other):
        found, expected = (torch.as_tensor(NUMBERS[tool](each), dtype=torch.float64) for each in (other, model))
    assert_close(found, expected, 1e-5)


def test_grouped_queries_share_values():
    """A bridge with two groups of two heads, and the same model with keys and values repeated."""
    grouped, every = bridge(n_key_value_heads=2), bridge()
    own = dict(grouped.named_parameters())
    for name, parameter in every.named_parameters():
        is_shared = parameter.shape != own[name].shape
        repeated = own[name].unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1) if is_shared else own[name]
        parameter.data.copy_(repeated)
    for head in range(4):
        copying = [cc.heads.copying_score(model, 0, head, read_by="keys") for model in (grouped, every)]
        assert copying[0] == pytest.approx(copying[1], abs=1e-9)
    assert scores(grouped) == pytest.approx(scores(every), abs=1e-9)


def test_what_a_bridge_cannot_do_is_refused_by_name(tmp_path):
    model = bridge()
    refused = {
        "bridge already": lambda: as_bridge(model),
        "no disentangled residual stream": lambda: cc.save_model(model, tmp_path),
        "disentangle makes": lambda: cc.circuits.circuit_graph(model, "slot"),
        "use_split_qkv_input": lambda: cc.patch_paths(model, BATCH.tokens, OTHER.tokens, of_use),
    }
    for words, call in refused.items():
        with assert_given_back(model):
            assert_refused(call, words)
    halved = bridge()
    halved.add_hook("blocks.0.attn.hook_z", lambda value, hook: value * 0.5)
    assert cc.models.attachments(halved) == ("hook on blocks.0.attn.o.hook_in",)
    assert_refused(lambda: cc.models.disentangle(halved), "hook on blocks.0.attn.o.hook_in", "reset_hooks")
    ours = cc.models.ordinary_transformer(3, 6)
    ours.add_hook("blocks.0.attn.hook_z", lambda value, hook: value * 0.5)
    assert_refused(lambda: as_bridge(ours), "hook on blocks.0.attn.hook_z")


def test_a_trained_bridge_is_another_model_and_its_graph_is_read():
    model = as_bridge(cc.models.ordinary_transformer(3, 6, d_model=12, d_mlp=0, seed=1))
    before = float(cc.evaluate(model, BATCH).mean())
    record = cc.train(model, TASK, cc.TrainConfig.joint(60, 0.01, batch_size=64), progress=False)
    assert float(cc.evaluate(model, BATCH).mean()) < before - 0.05
    assert len(record.losses) == 60
    assert cc.extract_graph(model, TASK).number_of_nodes() == 7  # and the target
