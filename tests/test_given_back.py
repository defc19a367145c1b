"""After any public analysis the model is what it was: hooks, weights, gradients, training mode, requires_grad.

Every public function with a parameter `model` must be listed here; those that change it by design are named as such.
"""

import inspect
from contextlib import suppress

import pytest
import torch
from assertions import assert_given_back

import causal_circuits as cc

ROOMS = ("heads", "films", "models", "recording", "training", "interventions", "discovery")
BY_DESIGN = {"restore_checkpoint", "start_from_matches", "train", "warm_start", "warm_readout"}
BY_DESIGN |= {"gradient_step", "mean_loss", "match_blocks", "trainable_parameters"}  # gradients, and what is trained
CHECKS = {"check_forward", "check_head", "check_model"}
METRICS = {"ablate_heads", "knock_out_edges", "patch_activations", "patch_paths", "scrub_hypothesis"}

TASK = cc.InContextTask(cc.ngram_graph(6, order=1), d_vocab=4, alpha=0.3)
BATCH, OTHER = TASK.sample(30, seed=1), TASK.sample(30, seed=2)

RECORD = cc.train(
    cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.5, seed=3),
    TASK,
    cc.TrainConfig.joint(40, batch_size=8, warm_start=None),
    progress=False,
)


class Broken(Exception):
    """Raised by a metric."""


def broken(logits: torch.Tensor, *rest: object) -> torch.Tensor:
    """A metric of the user's that fails."""
    raise Broken


def margin(logits: torch.Tensor) -> torch.Tensor:
    """A metric of the user's that works."""
    return logits[:, 0] - logits[:, 1]


def clamped(model: cc.models.HookedTransformer) -> None:
    """Run the model with layer 0's pattern given."""
    with cc.training.clamped_attention(model, {0: torch.eye(6)}):
        model(BATCH.tokens)


CALLS = {
    "ablate_heads": lambda model, **o: cc.ablate_heads(model, BATCH, [(0, 0)], **o),
    "attachments": cc.models.attachments,
    "block_masks": lambda model: cc.training.block_masks(model, {"W_Q.0": [("position", "position")]}),
    "attention_block": lambda model: cc.models.attention_block(model, 0, 0, "position", "position"),
    "clamped_attention": lambda model: clamped(model),
    "copying_score": lambda model: cc.heads.copying_score(model, 1, 0),
    "detect_induction_heads": lambda model: cc.detect_induction_heads(model, TASK, n_sequences=20),
    "evaluate": lambda model: cc.evaluate(model, BATCH),
    "extract_graph": lambda model: cc.extract_graph(model, TASK, n_sequences=200),
    "knock_out_edges": lambda model, **o: cc.knock_out_edges(model, BATCH, **o),
    "has_layout": cc.models.has_layout,
    "layout_of": cc.models.layout_of,
    "live_heads": cc.models.live_heads,
    "log_probs": lambda model: cc.log_probs(model, BATCH.tokens),
    "logits": lambda model: cc.models.logits(model, BATCH.tokens),
    "make_cost": lambda model: cc.interventions.make_cost("kl_to_model", BATCH, model=model),
    "mean_attention": lambda model: cc.mean_attention(model, BATCH.tokens),
    "measured_match_gradient": lambda model: cc.training.measured_match_gradient(model, BATCH, (2, 3)),
    "patch_activations": lambda model, metric=margin: cc.patch_activations(
        model, BATCH.tokens, OTHER.tokens, lambda logits: metric(logits).mean()
    ),
    "patch_paths": lambda model, metric=margin: cc.patch_paths(
        model, BATCH.tokens, OTHER.tokens, lambda logits: metric(logits).mean()
    ),
    "scrub_hypothesis": lambda model, **o: cc.scrub_hypothesis(model, BATCH, TASK, **o),
    "sequence_attention": lambda model: cc.films.sequence_attention(model, BATCH.tokens[0]),
    "slots": cc.models.slots,
    "structured_logits": lambda model: cc.models.structured_logits(model, BATCH.tokens),
    "training_health": lambda model: cc.training.training_health(RECORD, TASK, model),
    "take_snapshot": lambda model: cc.training.take_snapshot(model, BATCH),
}
BUILDS_OR_WRITES = {"as_bridge", "disentangle", "entangle", "save_model", "watch_attention"}


def used_model() -> cc.models.HookedTransformer:
    """A model that somebody works with: gradients, a hook of its own, a frozen matrix, evaluation mode."""
    model = cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.5, seed=3)
    cc.log_probs(model, OTHER.tokens).sum().backward()
    model.add_hook("blocks.1.attn.hook_pattern", lambda pattern, hook: None)
    model.unembed.W_U.requires_grad_(False)
    return model.eval()


def public_functions(room: object) -> dict[str, object]:
    """Of a room with `__all__` what stands there, of a module all that it defines."""
    names = getattr(room, "__all__", [name for name in vars(room) if not name.startswith("_")])
    found = {name: getattr(room, name) for name in names}
    return {name: f for name, f in found.items() if inspect.isfunction(f) and f.__module__.startswith(room.__name__)}


def test_every_public_function_of_a_model_is_listed():
    rooms = (cc, *(getattr(cc, name) for name in ROOMS))
    public = {name: function for room in rooms for name, function in public_functions(room).items()}
    takes = {name for name, function in public.items() if "model" in inspect.signature(function).parameters}
    assert takes == set(CALLS) | BY_DESIGN | BUILDS_OR_WRITES | CHECKS


@pytest.mark.parametrize("name", CALLS)
def test_the_model_is_given_back(name):
    model = used_model()
    with assert_given_back(model):
        CALLS[name](model)


@pytest.mark.parametrize("point", ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"])
@pytest.mark.parametrize("name", CALLS)
def test_the_model_is_given_back_when_a_hook_of_the_users_fails_at_its_second_run(name, point):
    model, fired = used_model(), []
    model.add_hook(point, lambda value, hook: broken(value) if fired else fired.append(1))
    with assert_given_back(model), suppress(Broken, ValueError):
        CALLS[name](model)


@pytest.mark.parametrize("name", ["disentangle", "entangle"])
def test_rewriting_a_model_leaves_the_original(name):
    model = used_model() if name == "entangle" else cc.models.ordinary_transformer(4, 6, d_mlp=0)
    model.reset_hooks()  # weights alone are rewritten: a hook is refused by name (test_attachments)
    with assert_given_back(model):
        getattr(cc.models, name)(model)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_model_is_given_back_when_the_users_metric_fails(name):
    model = used_model()
    with assert_given_back(model), pytest.raises(Broken):
        CALLS[name](model, metric=broken)


def test_the_model_is_given_back_when_a_watched_pass_fails():
    model = used_model()
    with assert_given_back(model), pytest.raises(Broken), cc.recording.watch_attention(model):
        broken(cc.log_probs(model, BATCH.tokens))
