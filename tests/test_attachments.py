"""Whatever is attached to a model or set in its config: every analysis answers for the model as it is, or refuses.

The oracle is TransformerLens's own forward, run here without the package: model(tokens), run_with_hooks, autograd.
"""

import copy
import dataclasses
import functools
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from assertions import assert_close, assert_refused, unchecked_types
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from users import users_model

import causal_circuits as cc
from causal_circuits import models
from causal_circuits.models import HookedTransformer, hooked
from causal_circuits.models.acceptance import FREE_FIELDS, REQUIRED, attachments, is_bridge
from causal_circuits.training import gradient_step, take_snapshot

GRAPH = cc.chain_graph(6)
TASK = cc.InContextTask(GRAPH, d_vocab=3)
BATCH, OTHER = TASK.sample(64, seed=0), TASK.sample(64, seed=1)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(action="ignore"):
        yield


def planted() -> HookedTransformer:
    return cc.plant_circuit(GRAPH, d_vocab=3)


# ---- the oracle: nothing but TransformerLens


def plain_log_probs(model: HookedTransformer, tokens: Tensor, hooks: list | None = None) -> Tensor:
    with model.hooks(fwd_hooks=hooks or []):
        output = model(tokens)[:, -1]
    layout = getattr(model, "causal_circuits_layout", None)
    return (output + 1e-9).log() if layout is not None and layout.kind == "reduced" else output.log_softmax(dim=-1)


plainly = torch.no_grad()(plain_log_probs)


def losses(predicted: Tensor) -> Tensor:
    return -(BATCH.target_probs.to(predicted.dtype) * predicted).sum(dim=-1)


def assert_within(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Relative to the largest entry, and to 1: some gradients are zero."""
    off = float((found - expected).detach().abs().max())
    assert off < tolerance * max(1.0, float(expected.detach().abs().max())), name


def plain_gradients(model: HookedTransformer) -> dict[str, Tensor]:
    """The gradient of the mean loss by autograd through the plain forward, of every parameter that is trained."""
    model.zero_grad(set_to_none=True)
    losses(plain_log_probs(model, BATCH.tokens)).mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


# ---- every public function that takes any model, beside the oracle


def check_evaluate(model: HookedTransformer) -> None:
    assert_close(cc.evaluate(model, BATCH), losses(plainly(model, BATCH.tokens)), 1e-4)


def check_logits(model: HookedTransformer) -> None:
    assert_close(models.logits(model, BATCH.tokens), model(BATCH.tokens)[:, -1], 1e-4)


def check_mean_attention(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(BATCH.tokens)
    expected = [cache[f"blocks.{layer}.attn.hook_pattern"].mean(dim=0) for layer in range(model.cfg.n_layers)]
    assert_close(cc.mean_attention(model, BATCH.tokens), torch.stack(expected), 1e-4)


def check_ablation(model: HookedTransformer) -> None:
    def zero(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 0] = 0.0
        return z

    found = cc.ablate_heads(model, BATCH, [(1, 0)], method="zero")
    expected = losses(plainly(model, BATCH.tokens, [("blocks.1.attn.hook_z", zero)])).mean()
    assert found.loss == pytest.approx(float(expected), abs=1e-4, rel=1e-6)
    assert found.attached == attachments(model)


def check_knock_out(model: HookedTransformer) -> None:
    def cut(pattern: Tensor, hook: object) -> Tensor:
        pattern = pattern.clone()
        pattern[:, 0, 4, 1] = 0.0
        return pattern

    found = cc.knock_out_edges(model, BATCH, entries=[(0, 4, 1)])
    without = losses(plainly(model, BATCH.tokens, [("blocks.0.attn.hook_pattern", cut)]))
    expected = float((without - losses(plainly(model, BATCH.tokens))).mean())
    assert float(found.effect[0, 4, 1]) == pytest.approx(expected, abs=2e-4, rel=1e-6)
    assert found.attached == attachments(model)


def of_use(predicted: Tensor) -> Tensor:
    return (BATCH.target_probs * predicted).sum(dim=-1).mean()


def check_patch_activations(model: HookedTransformer) -> None:
    _, cache = model.run_with_cache(BATCH.tokens)
    name = "blocks.1.hook_resid_pre"
    found = cc.patch_activations(model, BATCH.tokens, OTHER.tokens, of_use, names=[name], by_position=False)
    expected = of_use(plainly(model, OTHER.tokens, [(name, lambda value, hook: cache[name])]))
    assert float(found.metric[0, 0]) == pytest.approx(float(expected), abs=1e-4, rel=1e-6)
    assert found.attached == attachments(model)


def check_patch_paths(model: HookedTransformer) -> None:
    """One head's output goes straight to the logits: the other layer's output is frozen to the corrupted run's."""
    found = cc.patch_paths(model, BATCH.tokens, OTHER.tokens, of_use, paths=[("L0H0", "logits")])
    _, clean = model.run_with_cache(BATCH.tokens)
    _, corrupted = model.run_with_cache(OTHER.tokens)

    def take_head(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 0] = clean["blocks.0.attn.hook_z"][:, :, 0]
        return z

    hooks = [
        ("blocks.0.attn.hook_z", take_head),
        ("blocks.1.hook_attn_out", lambda value, hook: corrupted["blocks.1.hook_attn_out"]),
    ]
    expected = of_use(plainly(model, OTHER.tokens, hooks))
    assert float(found.metric[0, 0]) == pytest.approx(float(expected), abs=1e-4, rel=1e-6)


def check_snapshot(model: HookedTransformer) -> None:
    """Gradients of layer 1's scores, taken where TransformerLens has them: at hook_attn_scores."""
    kept: list[Tensor] = []

    def keep(scores: Tensor, hook: object) -> None:
        kept.append(scores)

    model.zero_grad(set_to_none=True)
    predicted = plain_log_probs(model, BATCH.tokens, [("blocks.1.attn.hook_attn_scores", keep)])
    loss = losses(predicted).mean()
    snapshot = take_snapshot(model, BATCH)
    assert snapshot.loss == pytest.approx(float(loss.detach()), abs=1e-4, rel=1e-6)
    if loss.requires_grad and kept[0].requires_grad:
        (gradient,) = torch.autograd.grad(loss, kept, allow_unused=True)
        # an attachment may come between scores and pattern, and a bridge has the pattern at hook_attn_scores
        if gradient is not None and not attachments(model) and not is_bridge(model):
            visible = torch.isfinite(kept[0].detach())
            summed = torch.where(visible, gradient, 0.0).sum(dim=0)
            assert float((snapshot.score_gradients[-1] + summed).abs().max()) < 1e-4


def check_gradient_step(model: HookedTransformer) -> None:
    expected = plain_gradients(model)
    gradient_step(model, BATCH)
    for name, parameter in model.named_parameters():
        if name in expected:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_within(gradient, expected[name], 1e-4, name)
    model.zero_grad(set_to_none=True)


def check_training(model: HookedTransformer) -> None:
    """One step of SGD moves every parameter by minus the rate times its plain gradient, and no other."""
    config = cc.TrainConfig.joint(1, 0.5, optimizer="sgd", schedule="constant", warm_start=None, batch_size=64)
    model.causal_circuits_weights_from = None
    drawn = TASK.draws((config.seed, 2402_14735), 0, 64)
    model.zero_grad(set_to_none=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (-(drawn.target_probs.to(model.W_U.dtype) * plain_log_probs(model, drawn.tokens)).sum(dim=-1).mean()).backward()
    moved = {name: 0.5 * p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    cc.train(model, TASK, config, record=cc.RecordAt(steps=()), progress=False)
    for name, parameter in model.named_parameters():
        expected = before[name] - moved.get(name, torch.zeros_like(parameter))
        assert_within(parameter, expected, 1e-4, name)


def check_disentangle(model: HookedTransformer) -> None:
    assert_close(cc.models.disentangle(model)(BATCH.tokens), model(BATCH.tokens), 2e-2)


def check_scrubbing(model: HookedTransformer) -> None:
    found = cc.scrub_hypothesis(model, BATCH, TASK)
    assert found.baseline_loss == pytest.approx(float(losses(plainly(model, BATCH.tokens)).mean()), abs=1e-4, rel=1e-6)
    assert found.attached == attachments(model)


def check_extraction(model: HookedTransformer) -> None:
    """Every candidate's weight is the mean of the model's own pattern."""
    found = cc.extract_graph(model, batch=BATCH)
    _, cache = model.run_with_cache(BATCH.tokens)
    mean = cache["blocks.0.attn.hook_pattern"].mean(dim=0)
    for candidate in found.candidates:
        assert candidate.weight == pytest.approx(
            float(mean[candidate.head, candidate.child, candidate.parent]), abs=1e-4
        )
    assert found.attached == attachments(model)


def check_heads(model: HookedTransformer) -> None:
    """The previous-token score is the mass on the diagonal, with uniform attention at 0."""
    _, cache = model.run_with_cache(BATCH.tokens)
    rows = torch.arange(1, 5)
    uniform = float((1 / (rows + 1)).mean())
    for head in cc.detect_induction_heads(model, TASK, tokens=BATCH.tokens):
        pattern = cache[f"blocks.{head.layer}.attn.hook_pattern"][:, head.head]
        mass = float(pattern[:, rows, rows - 1].mean())
        assert head.previous_token_score == pytest.approx((mass - uniform) / (1 - uniform), abs=1e-4, rel=1e-6)


CHECKS = [value for name, value in dict(globals()).items() if name.startswith("check_")]


def hold(model: HookedTransformer) -> list[str]:
    """Every check, each on the model with its first weights; the names of those that were refused, in one line each."""
    refused = {}
    for check in CHECKS:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            with unchecked_types():  # a third faster; the numbers are compared here
                check(model)
        except ValueError as error:
            refused[check.__name__.removeprefix("check_")] = str(error)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
    assert not any("\n" in message for message in refused.values()), refused
    return list(refused)


# ---- what can be attached


def halve(value: Tensor) -> Tensor:
    return 0.5 * value


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return halve(weight)


def native_hook(model: HookedTransformer) -> None:
    model.blocks[0].attn.register_forward_hook(lambda module, inputs, output: halve(output))


def replaced_forward(model: HookedTransformer) -> None:
    block = model.blocks[1].attn
    own = block.forward
    block.forward = lambda *args, **kwargs: halve(own(*args, **kwargs))


def edited(model: HookedTransformer) -> None:
    model.blocks[0].attn.W_V.data.view(-1)[0] += 0.7


def tied(model: HookedTransformer) -> None:
    model.blocks[1].attn.W_Q = model.blocks[0].attn.W_Q


def lens_hook(point: str) -> Callable[[HookedTransformer], None]:
    return lambda model: model.add_hook(point, lambda value, hook: halve(value))


ATTACHED: dict[str, Callable[[HookedTransformer], object]] = {
    "native hook": native_hook,
    "native hook on a hook point": lambda model: model.blocks[1].attn.hook_pattern.register_forward_hook(
        lambda module, inputs, output: halve(output)
    ),
    "native hook on the model": lambda model: model.register_forward_hook(lambda module, inputs, output: halve(output)),
    "native pre-hook": lambda model: model.unembed.register_forward_pre_hook(
        lambda module, inputs: (halve(inputs[0]),)
    ),
    "native backward hook": lambda model: model.unembed.register_full_backward_hook(
        lambda module, inputs, outputs: tuple(halve(g) for g in inputs)
    ),
    "gradient hook": lambda model: model.blocks[0].attn.W_Q.register_hook(halve),
    "replaced forward": replaced_forward,
    "parametrized": lambda model: nn.utils.parametrize.register_parametrization(model.blocks[0].attn, "W_V", Halved()),
    "pruned": lambda model: prune.l1_unstructured(model.blocks[0].attn, "W_V", amount=0.5),
    "edited": edited,
    "tied": tied,
    "scaled attention": lambda model: setattr(model.blocks[1].attn, "attn_scale", 2.0),
    "config changed afterwards": lambda model: setattr(model.cfg, "output_logits_soft_cap", 1.0),
}
POINTS = ("hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_q", "blocks.0.attn.hook_attn_scores")
POINTS += ("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.0.hook_attn_out", "blocks.1.attn.hook_pattern")
POINTS += ("blocks.1.attn.hook_v", "blocks.1.hook_resid_post", "unembed.hook_in", "unembed.hook_out")
ATTACH = ATTACHED | {f"hook on {point}": lens_hook(point) for point in POINTS}

# What is refused; every other analysis answers for the model with the attachment.
BETWEEN_LAYERS = {"native hook", "replaced forward"}
BETWEEN_LAYERS |= {"hook on blocks.0.hook_attn_out", "hook on blocks.1.hook_resid_post"}
REFUSED = {"patch_paths": BETWEEN_LAYERS, "training": {"parametrized", "tied"}}


def random_model() -> HookedTransformer:
    return cc.disentangled_transformer(3, 6, (2, 1), init_scale=0.5, seed=1)


CASES = [(build, name) for build in (random_model, users_model) for name in ATTACH]


@pytest.mark.parametrize(("build", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_attached_is_honoured_or_refused(build, name):
    model = build()
    ATTACH[name](model)
    with quiet():
        refused = set(hold(model)) - {"disentangle"}
    expected = {check for check, names in REFUSED.items() if name in names}
    assert refused == (expected - {"training"} if build is users_model else expected)


def test_a_model_with_nothing_attached_is_refused_nowhere():
    assert set(hold(planted())) <= {"disentangle"}  # it is disentangled, and too wide to be so again
    assert hold(users_model()) == []
    for n_layers in (1, 3):  # its last layer is computed at one position
        check_logits(users_model(n_layers=n_layers))
        check_gradient_step(users_model(n_layers=n_layers))


# ---- config fields: all that this TransformerLens has

EXPERTS = {"attn_only": False, "d_mlp": 8, "num_experts": 2, "experts_per_token": 1, "gated_mlp": True}
VALUES: dict[str, list[dict[str, object]]] = {
    "attn_only": [{"attn_only": False, "d_mlp": 8}],
    "act_fn": [{"attn_only": False, "d_mlp": 8, "act_fn": "gelu"}],
    "gated_mlp": [{"attn_only": False, "d_mlp": 8, "gated_mlp": True}],
    "parallel_attn_mlp": [{"attn_only": False, "d_mlp": 8, "parallel_attn_mlp": True, "normalization_type": "LN"}],
    "normalization_type": [{"normalization_type": kind} for kind in ("LN", "LNPre", "RMS", "RMSPre")],
    "final_rms": [{"normalization_type": "RMS", "final_rms": True}],
    "uses_rms_norm": [{"uses_rms_norm": True}],
    "use_normalization_before_and_after": [{"normalization_type": "RMS", "use_normalization_before_and_after": True}],
    "layer_norm_folding": [{"normalization_type": "LN", "layer_norm_folding": True}],
    "eps": [{"normalization_type": "LN", "eps": 0.1}],
    "positional_embedding_type": [
        {"positional_embedding_type": "rotary", "rotary_dim": 4},
        {"positional_embedding_type": "shortformer"},
        {"positional_embedding_type": "alibi"},
        {"positional_embedding_type": "none"},
    ],
    "rotary_adjacent_pairs": [{"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True}],
    "rotary_base": [{"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_base": 10}],
    "use_NTK_by_parts_rope": [{"positional_embedding_type": "rotary", "rotary_dim": 4, "use_NTK_by_parts_rope": True}],
    "use_yarn_rope": [{"positional_embedding_type": "rotary", "rotary_dim": 4, "use_yarn_rope": True}],
    "use_attn_scale": [{"use_attn_scale": False}],
    "attn_scale": [{"attn_scale": 3.0}, {"attn_scale": 3.0, "use_attn_scale": False}],
    "scale_attn_by_inverse_layer_idx": [{"scale_attn_by_inverse_layer_idx": True}],
    "use_qk_norm": [{"use_qk_norm": True}],
    "clip_qkv": [{"clip_qkv": 0.2}],
    "use_logn_attn": [{"use_logn_attn": True, "train_seq_length": 3}],
    "attn_scores_soft_cap": [{"attn_scores_soft_cap": 0.5}],
    "output_logits_soft_cap": [{"output_logits_soft_cap": 0.5}],
    "use_attention_sinks": [{"use_attention_sinks": True}],
    "use_local_attn": [{"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]}],
    "attention_dir": [{"attention_dir": "bidirectional"}],
    "n_key_value_heads": [{"n_key_value_heads": 2}, {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True}],
    "use_attn_result": [{"use_attn_result": True}],
    "use_attn_in": [{"use_attn_in": True}],
    "use_split_qkv_input": [{"use_split_qkv_input": True}],
    "use_hook_mlp_in": [{"attn_only": False, "d_mlp": 8, "use_hook_mlp_in": True}],
    "use_hook_tokens": [{"use_hook_tokens": True}],
    "post_embedding_ln": [{"post_embedding_ln": True, "normalization_type": "LN"}],
    "original_architecture": [
        {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS"},
        {"original_architecture": "Olmo2ForCausalLM"},
    ],
    "num_experts": [EXPERTS],
    "norm_topk_prob": [{**EXPERTS, "norm_topk_prob": True}],
    "tie_word_embeddings": [{"tie_word_embeddings": True}],
    "dtype": [{"dtype": torch.float32}],
    "n_ctx": [{"n_ctx": 9}],
    "default_prepend_bos": [{"default_prepend_bos": False}],
}
# Fields that name, load, place or start a model, or refine a feature above.
_OTHER_FIELDS = """
    d_model d_head n_heads n_layers d_mlp d_vocab d_vocab_out device model_name
    train_seq_length use_dynamic_ntk_rope window_size attn_types
    from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value tokenizer_name init_mode n_devices seed
    initializer_range init_weights rotary_dim n_params tokenizer_prepends_bos rotary_base_local rotary_scaling_factor
    trust_remote_code load_in_4bit quantization_method relative_attention_max_distance relative_attention_num_buckets
    decoder_start_token_id experts_per_token ungroup_grouped_query_attention NTK_by_parts_low_freq_factor
    NTK_by_parts_high_freq_factor NTK_by_parts_factor NTK_original_ctx_len yarn_factor yarn_attention_factor
    yarn_beta_fast yarn_beta_slow yarn_original_max_position_embeddings yarn_truncate yarn_global_attn_only
"""
OTHER_FIELDS = _OTHER_FIELDS.split()


def test_every_config_field_of_this_transformer_lens_has_been_thought_of():
    thought_of = set(VALUES) | set(OTHER_FIELDS)
    assert set(REQUIRED) | FREE_FIELDS <= thought_of
    if hooked.LibraryTransformer is not None:
        import transformer_lens

        assert {field.name for field in dataclasses.fields(transformer_lens.HookedTransformerConfig)} == thought_of


def try_config(fields: dict[str, object]) -> HookedTransformer | None:
    """The model, if TransformerLens itself can build and run it on our sequences."""
    try:
        with quiet():
            model = users_model(**fields)
            finite = bool(torch.isfinite(model(BATCH.tokens)).all())
        return model if finite else None
    except Exception:
        return None


@pytest.mark.parametrize("fields", [fields for every in VALUES.values() for fields in every], ids=str)
def test_every_config_field_is_honoured_or_refused(fields):
    model = try_config(fields)
    if model is None:  # TransformerLens itself cannot build or run it
        cannot_run = fields.get("positional_embedding_type") == "none" or "num_experts" in fields
        assert cannot_run or hooked.LibraryTransformer is None
        return
    with quiet():
        refused = set(hold(model))
    if hooked.LibraryTransformer is None:  # on 3.9 more is refused
        of_another_length = {"training"} if "n_ctx" in fields else set()
        assert refused <= {"disentangle", "patch_paths"} | of_another_length


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.lists(st.sampled_from([fields for every in VALUES.values() for fields in every]), max_size=3),
    attached=st.lists(st.sampled_from(sorted(ATTACH)), max_size=2),
    ours=st.booleans(),
)
def test_any_config_with_anything_attached_is_honoured_or_refused(fields, attached, ours):
    model = planted() if ours else try_config({name: value for some in fields for name, value in some.items()})
    assume(model is not None)
    try:
        for name in attached:
            ATTACH[name](model)
        model(BATCH.tokens)
    except Exception:
        assume(False)
    with quiet():
        hold(model)


# ---- the cases by name, with the right value beside each


def test_parameters_of_inference_mode_are_not_trained():
    with torch.inference_mode():
        built_inside = cc.disentangled_transformer(3, 6, dtype=torch.float64)
    assert_refused(lambda: cc.train(built_inside, TASK), "inference_mode")


def test_training_works_where_gradients_are_switched_off():
    config = cc.TrainConfig.joint(3, 0.1, batch_size=8)
    weights = []
    for switched_off in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = cc.disentangled_transformer(3, 6, dtype=torch.float64)
        with switched_off():
            cc.train(model, TASK, config, progress=False)
        weights.append(model.W_U.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_weights_that_somebody_made_are_not_overwritten_by_a_warm_start(tmp_path):
    trained = cc.disentangled_transformer(3, 6)
    cc.train(trained, TASK, cc.TrainConfig.joint(2, batch_size=8), progress=False)
    loaded = cc.load_model(cc.save_model(trained, tmp_path))
    warm = cc.TrainConfig(warm_start=4.0)
    for model, origin in ((trained, "a training"), (loaded, "a file"), (planted(), "plant_circuit")):
        before = model.W_U.detach().clone()
        assert_refused(lambda m=model: cc.train(m, TASK, warm), origin, "warm_start=None")
        assert torch.equal(model.W_U, before)
        cc.train(model, TASK, cc.TrainConfig.joint(2, batch_size=8, warm_start=None), progress=False)


def assigned(model: HookedTransformer) -> HookedTransformer:
    other = cc.reduced_transformer(3, 6, models.layout_of(model).n_heads)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(True)


@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1)])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), assigned])
def test_a_copy_of_a_reduced_model_trains_the_same_entries(make, n_heads):
    model = cc.reduced_transformer(3, 6, n_heads)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        model.blocks[0].attn.W_Q[:] = torch.randn(model.blocks[0].attn.W_Q.shape, generator=generator)
        model.blocks[1].attn.W_Q[:] = torch.randn(model.blocks[1].attn.W_Q.shape, generator=generator)
    expected = plain_gradients(model)
    assert int((expected["blocks.1.attn.W_Q"] != 0).sum()) == 9 * n_heads[0]
    found = plain_gradients(make(model))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("claim", ["copy", "both"])
def test_a_hook_left_on_the_model_makes_no_vacuous_pass(claim):
    model = planted()
    assert cc.scrub_hypothesis(model, BATCH, TASK, claim).idle == ()
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    found = cc.scrub_hypothesis(model, BATCH, TASK, claim)
    assert "what layer 0 writes" in found.idle
    assert found.recovered != found.recovered  # NaN
    assert found.attached == ("hook on blocks.0.attn.hook_z",)


ANALYSES: dict[str, Callable[[HookedTransformer], object]] = {
    "evaluate": lambda model: cc.evaluate(model, BATCH),
    "mean_attention": lambda model: cc.mean_attention(model, BATCH.tokens),
    "extract_graph": lambda model: cc.extract_graph(model, TASK),
    "detect_induction_heads": lambda model: cc.detect_induction_heads(model, TASK),
    "ablate_heads": lambda model: cc.ablate_heads(model, BATCH, [(0, 0)]),
    "knock_out_edges": lambda model: cc.knock_out_edges(model, BATCH),
    "patch_activations": lambda model: cc.patch_activations(model, BATCH.tokens, BATCH.tokens, of_use),
    "patch_paths": lambda model: cc.patch_paths(model, BATCH.tokens, BATCH.tokens, of_use),
    "scrub_hypothesis": lambda model: cc.scrub_hypothesis(model, BATCH, TASK),
    "sequence_attention": lambda model: cc.films.sequence_attention(model, BATCH.tokens[0]),
}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("point", ["blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"])
def test_a_model_that_answers_differently_each_time_is_refused(analysis, point):
    model = cc.disentangled_transformer(3, 6, init_scale=1.0, seed=1)
    model.add_hook(point, lambda value, hook: nn.functional.dropout(value, 0.3, training=True))
    assert_refused(lambda: ANALYSES[analysis](model), "same output for the same tokens", "dropout")


def test_what_nobody_thought_of_is_caught_at_the_entrance(monkeypatch):
    """As if a model could be changed in a new way: the fast forward takes the model, and the comparison finds out."""
    monkeypatch.setattr("causal_circuits.models.acceptance.foreign", lambda model: iter(()))
    model = planted()
    replaced_forward(model)
    for analysis in ("evaluate", "knock_out_edges", "ablate_heads", "extract_graph", "mean_attention"):
        assert_refused(lambda a=analysis: ANALYSES[a](model), "fast forward must agree", "plain_forward")
    with models.plain_forward():
        check_evaluate(model)


def test_a_hook_of_torch_on_every_module_is_seen():
    model = planted()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: halve(output) if type(module).__name__ == "Unembed" else output
    )
    try:
        check_evaluate(model)
        check_gradient_step(model)
    finally:
        handle.remove()


def test_what_on_record_does_to_the_model_is_honoured_or_refused():
    config = cc.TrainConfig.joint(4, 0.5, optimizer="sgd", schedule="constant", warm_start=None, batch_size=64)
    record = cc.RecordAt(steps=(2,))

    def run(dtype: torch.dtype, on_record: Callable[[int, HookedTransformer], None]) -> HookedTransformer:
        model = nn.Module.to(cc.disentangled_transformer(3, 6, init_scale=0.3, seed=1), dtype)
        cc.train(model, TASK, config, record=record, on_record=on_record, progress=False)
        return model

    # edited weights: test_native_core
    assert_refused(lambda: run(torch.float32, lambda step, model: native_hook(model)), "native hook", "on_record")
    hooked = run(torch.float64, lambda step, model: native_hook(model))
    untouched = run(torch.float64, lambda step, model: None)
    assert float((hooked.W_U - untouched.W_U).detach().abs().max()) > 1e-3


# ---- found by somebody who tried to break it


def test_a_compiled_model_is_refused_where_hooks_are_needed():
    for compiled in (lambda model: model, lambda model: model.blocks[0]):
        model = users_model()
        compiled(model).compile(backend="eager")
        for analysis in ("ablate_heads", "patch_activations", "scrub_hypothesis", "knock_out_edges", "extract_graph"):
            assert_refused(lambda a=analysis, m=model: ANALYSES[a](m), "compiled module", "before model.compile()")


def average_over_the_batch(value: Tensor, hook: object) -> Tensor:
    value = value.clone()
    value[:, :, 0] = value[:, :, 0].mean(dim=0)
    return value


def test_a_hook_that_mixes_the_sequences_of_a_batch_is_refused(monkeypatch):
    stored: list[Tensor] = []
    mixing = {
        "a mean": average_over_the_batch,
        "another sequence": lambda value, hook: value.roll(1, dims=0),
        "a stored batch": lambda value, hook: stored[0],
    }
    for hook in mixing.values():
        model = users_model()
        _, cache = model.run_with_cache(BATCH.tokens)
        stored[:] = [cache["blocks.1.attn.hook_z"].roll(1, dims=0)]
        model.add_hook("blocks.1.attn.hook_z", hook)
        check_evaluate(model)  # one batch, as it is
        assert_refused(lambda m=model: cc.knock_out_edges(m, BATCH), "without regard to the others")
        with monkeypatch.context() as smaller:
            smaller.setattr("causal_circuits.training.steps.chunks", lambda n: [slice(0, 16), slice(16, n)])
            assert_refused(lambda m=model: cc.evaluate(m, BATCH), "without regard to the others")
    model = users_model()
    mean = model.run_with_cache(BATCH.tokens)[1]["blocks.1.attn.hook_z"].mean(dim=0)
    model.add_hook("blocks.1.attn.hook_z", lambda value, hook: mean.expand_as(value))
    check_knock_out(model)


def test_patching_at_a_hook_that_is_never_called_is_refused():
    patch = functools.partial(cc.patch_activations, users_model(), BATCH.tokens, OTHER.tokens, of_use)
    for name in ("attn.hook_result", "hook_q_input", "hook_attn_in", "hook_mlp_out"):
        assert_refused(functools.partial(patch, names=[f"blocks.0.{name}"]), name, "never calls it")


def test_a_replaced_method_is_seen_by_every_forward():
    for replace in (
        lambda model: setattr(model.blocks[0].attn, "apply_causal_mask", lambda scores, *args, **kwargs: scores),
        lambda model: setattr(model.blocks[0].attn.hook_z, "forward", lambda value: value * 0),
    ):
        model = cc.disentangled_transformer(3, 6, init_scale=1.0, seed=0)
        untouched = plainly(model, BATCH.tokens)
        replace(model)
        assert float((plainly(model, BATCH.tokens) - untouched).abs().max()) > 0.1
        assert any("replaced module" in found for found in attachments(model))
        assert_close(cc.log_probs(model, BATCH.tokens), plainly(model, BATCH.tokens), 1e-4)
        with quiet():
            check_training(model)


def test_gradients_are_taken_in_inference_mode_too():
    model = cc.disentangled_transformer(3, 6, init_scale=0.5, seed=0)
    expected = take_snapshot(model, BATCH)
    parts = [of(model, BATCH) for of in (cc.circuits.circuit_model, cc.circuits.entry_model)]
    scores = [cc.circuits.discover(of, "eap_ig").score for of in parts]
    gradient_step(model, BATCH)
    gradient = model.unembed.W_U.grad.clone()
    with torch.inference_mode():
        drawn = TASK.sample(64, seed=0)
        assert torch.equal(take_snapshot(model, drawn).score_gradients, expected.score_gradients)
        found = [cc.circuits.discover(of, "eap_ig").score for of in parts]
        assert all(map(torch.equal, found, scores))
        gradient_step(nn.Module.to(model, torch.float64), drawn)
    assert_close(model.unembed.W_U.grad, gradient, 1e-4)


def test_pruned_and_tied_weights_are_neither_saved_nor_trained(tmp_path):
    model = cc.disentangled_transformer(3, 6, init_scale=0.5, seed=0)
    prune.l1_unstructured(model.blocks[0].attn, "W_Q", 0.5)
    with quiet():
        assert_refused(lambda: cc.save_model(model, tmp_path), "blocks.0.attn.W_Q", "pruning")
        assert_refused(lambda: cc.train(model, TASK, cc.TrainConfig.joint(2, warm_start=None)), "prun")
    model = cc.disentangled_transformer(3, 6, init_scale=0.5, seed=0)
    tied(model)
    assert_refused(lambda: cc.save_model(model, tmp_path), "blocks.1.attn.W_Q", "tied")
    assert_refused(lambda: cc.train(model, TASK), "different objects", "W_Q.0")


def test_autocast_is_honoured():
    model = cc.disentangled_transformer(3, 6, init_scale=0.5, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = cc.evaluate(model, BATCH), losses(plainly(model, BATCH.tokens))
    assert_close(found.float(), expected.float(), 2.0**-7)  # bfloat16 has eight bits


def test_frozen_weights_stay_where_they_are():
    model = cc.disentangled_transformer(3, 6, init_scale=0.3, seed=1)
    config = cc.TrainConfig.joint(4, 0.5, warm_start=None, batch_size=64)
    freeze = lambda step, model: model.unembed.W_U.requires_grad_(False)  # noqa: E731
    at_2 = cc.RecordAt(steps=(2,))
    assert_refused(lambda: cc.train(model, TASK, config, record=at_2, on_record=freeze, progress=False), "freeze")
    frozen = cc.disentangled_transformer(3, 6).requires_grad_(False)
    assert_refused(lambda: cc.train(frozen, TASK, config), "frozen")


def test_the_default_dtype_is_nobodys_business():
    config = cc.TrainConfig.joint(3, 0.1, batch_size=64)
    weights = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model = cc.disentangled_transformer(3, 6)
            cc.train(model, TASK, config, progress=False)
            weights.append(model.W_U.detach())
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(weights[0], weights[1])
