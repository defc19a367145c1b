"""Our HookedTransformer for TransformerLens 4, beside TransformerLens's own class (3.9), or beside its bridge (4)."""

import copy
import pickle

import pytest
import torch
from assertions import assert_close, assert_refused
from users import DEFAULTS, randomized

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, as_bridge, hooked

TOKENS = torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(2))
MLP = {"attn_only": False, "d_mlp": 8}
CONFIGS = ({}, {"use_attn_scale": False, "n_heads": 1}, {**MLP, "d_vocab_out": 4}, {"attn_scale": 3.0, "n_layers": 3})
SWITCHES = ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def beside(**fields: object) -> tuple[HookedTransformer, HookedTransformer]:
    """Ours and TransformerLens's, with the same random weights."""
    config = DEFAULTS | fields
    ours = randomized(hooked.build_transformer(config, hooked.Transformer), 0.4)
    if hooked.LibraryTransformer is None:
        ours.b_U.data.zero_()  # a bridge has none
        return ours, as_bridge(ours)
    theirs = hooked.build_transformer(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_ours_gives_the_numbers_of_transformer_lens_at_every_hook(fields, dtype):
    ours, theirs = beside(dtype=dtype, **fields)
    (found, cache), (expected, other) = (model.run_with_cache(TOKENS) for model in (ours, theirs))
    assert_close(found, expected, TOLERANCE[dtype])
    same = cache.keys() & other.keys() - {f"blocks.{layer}.attn.hook_attn_scores" for layer in range(3)}
    assert len(same) >= 9 * ours.cfg.n_layers
    for name in same:
        assert_close(cache[name], other[name], TOLERANCE[dtype])


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_ours_has_the_names_shapes_order_and_gradients_of_transformer_lens(fields):
    ours, theirs = beside(**fields)
    for model in (ours, theirs):
        model(TOKENS, return_type="loss").backward()
    for name in ("W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_U", "b_U"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for circuit in ("QK", "OV"):
        assert_close(getattr(ours, circuit).AB, getattr(theirs, circuit).AB, 1e-14)
    if hooked.LibraryTransformer is None:
        return  # a bridge names its parameters after the modules that it wraps
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert set(theirs.hook_dict) <= set(ours.hook_dict)
    for (name, found), (other, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_of_the_config_changes_no_number_and_calls_its_hook(switch):
    ours, theirs = beside(**MLP, **{switch: True})
    (found, cache), (_, off) = ours.run_with_cache(TOKENS), beside(**MLP)[0].run_with_cache(TOKENS)
    assert_close(found, theirs(TOKENS), 1e-14)
    called = cache.keys() - off.keys()
    assert called
    for name in called:
        ours.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda value, hook: None)])
    with pytest.raises((ValueError, AssertionError)):
        beside(**MLP)[0].add_hook(min(called), lambda value, hook: None)


def test_a_model_stopped_at_a_layer_goes_on_from_there():
    ours, theirs = beside(**MLP)
    between = ours(TOKENS, stop_at_layer=1)
    assert_close(between, theirs.run_with_cache(TOKENS)[1]["blocks.1.hook_resid_pre"], 1e-14)
    assert_close(ours(between, start_at_layer=1), ours(TOKENS), 0.0)
    _, loss = ours(TOKENS, return_type="both")
    assert_close(loss, theirs(TOKENS, return_type="loss"), 1e-14)
    assert_close(ours(TOKENS, return_type="loss", loss_per_token=True).mean(), loss, 1e-14)
    assert ours(TOKENS, return_type=None) is None
    assert_refused(lambda: ours(between, "loss", start_at_layer=1), "start_at_layer", "tokens")
    assert_refused(lambda: ours(TOKENS, "logit"), "return_type", "'logit'")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_model_of_its_own(copied):
    ours, _ = beside()
    other = copied(ours)
    other.set_use_attn_result(True)
    assert_close(other(TOKENS), ours(TOKENS), 1e-14)
    assert not ours.cfg.use_attn_result
    assert other.float().cfg.dtype == torch.float32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normalization_type", "LN"),
        ("act_fn", "gelu"),
        ("positional_embedding_type", "rotary"),
        ("attention_dir", "bidirectional"),
        ("n_key_value_heads", 2),
        ("use_qk_norm", True),
        ("attn_scores_soft_cap", 30.0),
        ("a_field_of_tomorrow", 1),
    ],
)
def test_what_ours_does_not_know_is_refused_by_name(field, value):
    build = hooked.build_transformer
    assert_refused(lambda: build({**DEFAULTS, field: value}, hooked.Transformer), field, repr(value), "boot_native")
    assert_refused(lambda: build({**DEFAULTS, "attn_only": False}, hooked.Transformer), "d_mlp")


def test_models_and_training_are_the_same_on_both_classes(monkeypatch, tmp_path):
    task, models = cc.InContextTask(cc.chain_graph(6), d_vocab=3), []
    for cls in (hooked.HookedTransformer, hooked.Transformer):
        monkeypatch.setattr(hooked, "HookedTransformer", cls)
        model = cc.disentangled_transformer(3, 6, dtype=torch.float64)
        cc.train(model, task, cc.TrainConfig.joint(30, 0.3, batch_size=64), progress=False)
        models.append(model)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    loaded = cc.load_model(cc.save_model(models[0], tmp_path))
    assert type(loaded) is hooked.Transformer
    assert_close(loaded(TOKENS), models[0](TOKENS), 1e-12)
    assert models[0].W_U.abs().max() > 0.01
