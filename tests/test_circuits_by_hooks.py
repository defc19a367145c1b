"""Circuits of any transformer, by hooks: equal to a disentangled model's own, and to patching with TransformerLens."""

import random

import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused
from test_circuits_evaluate import S, T, case
from torch import Tensor
from users import users_model

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.models import HookedTransformer

TASK = cc.InContextTask(cc.chain_graph(T), d_vocab=S)
BATCH, OTHER = TASK.sample(6, seed=0), TASK.sample(6, seed=1)


def two_of_one(n_heads: tuple[int, ...]) -> tuple[HookedTransformer, HookedTransformer]:
    """A disentangled model twice; the second does not say so, and is taken for an ordinary transformer."""
    models = tuple(case(n_heads)[0] for _ in range(2))
    del models[1].causal_circuits_layout
    return models


@pytest.mark.parametrize("counterfactual", [*circuits.COUNTERFACTUALS, OTHER.tokens], ids=str)
def test_hooks_and_slots_give_the_same_circuits(counterfactual: str | Tensor) -> None:
    by_slots, by_hooks = (circuits.circuit_model(m, BATCH, counterfactual=counterfactual) for m in two_of_one((1, 1)))
    masks = torch.rand(8, len(by_slots), generator=torch.Generator().manual_seed(0)) < 0.7
    assert by_hooks.edges == by_slots.edges
    assert_close(by_hooks.costs(masks), by_slots.costs(masks), 1e-9)
    for method in ("exact", "attention", "gradient_x_attention", "eap", "eap_ig", "acdc"):
        found, expected = (circuits.discover(whole, method).score for whole in (by_hooks, by_slots))
        assert_close(found, expected, 1e-9)


def test_hooks_and_slots_give_the_same_entries_with_several_heads() -> None:
    by_slots, by_hooks = (circuits.entry_model(m, BATCH, counterfactual="permute") for m in two_of_one((2, 2)))
    for method in ("attention", "gradient_x_attention", "eap_ig"):
        found, expected = (circuits.discover(parts, method).score for parts in (by_hooks, by_slots))
        assert_close(found, expected, 1e-9)
    assert_close(by_hooks.whole.effects(), by_slots.whole.effects(), 1e-9)


def architecture(seed: int) -> HookedTransformer:
    draw = random.Random(seed)
    fields: dict[str, object] = {
        "n_layers": draw.choice([1, 2, 2, 3]),
        "n_heads": draw.randint(1, 3),
        "d_head": draw.choice([2, 4]),
        "d_model": draw.randint(5, 12),
        "n_ctx": T,
        "normalization_type": draw.choice([None, "LN", "RMS"]),
        "attn_only": draw.random() < 0.4,
        "d_mlp": draw.randint(3, 9),
        "act_fn": draw.choice(["relu", "relu", "gelu"]),
    }
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 2} if draw.random() < 0.3 else {}
    return users_model(**fields, **rotary)


def loss(model: HookedTransformer, hooks: list | None = None) -> Tensor:
    with torch.no_grad():
        found = model.run_with_hooks(BATCH.tokens, fwd_hooks=hooks or [])[:, -1].log_softmax(dim=-1)
    return -(BATCH.target_probs.to(found.dtype) * found).sum(dim=-1).mean()


def place_of(node: str) -> tuple[str, int | None]:
    """ "L1H0.k" as ("blocks.1", 0)."""
    layer, _, head = node.split(".")[0].removeprefix("L").replace("MLP", "").partition("H")
    return f"blocks.{layer}", int(head) if head else None


def written(model: HookedTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """What every sender writes, and each head's z."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        found = {"token": cache["hook_embed"], "z": {}}
        if "hook_pos_embed" in cache:
            found["position"] = cache["hook_pos_embed"]
        for layer in range(model.cfg.n_layers):
            z = found["z"][layer] = cache[f"blocks.{layer}.attn.hook_z"]
            found |= {f"L{layer}H{head}": z[:, :, head] @ model.W_O[layer, head] for head in range(z.shape[2])}
            if not model.cfg.attn_only:
                found[f"L{layer}MLP"] = cache[f"blocks.{layer}.hook_mlp_out"]
    return found


def nudged(model: HookedTransformer, reader: str, change: Tensor) -> Tensor:
    """The mean loss where one reader alone finds a change in the residual stream.

    In a first run everything in the reader's layer finds it, and what the reader makes of it is kept; the second run
    has that in its place.
    """
    if reader == "logits":
        return loss(model, [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda value, hook: value + change)])
    (block, head), kind, kept = place_of(reader), reader.rpartition(".")[2], []
    stream, output = ("mid", "hook_mlp_out") if head is None else ("pre", f"attn.hook_{kind}")

    def put(value: Tensor, hook: object) -> Tensor:
        if head is None:
            return kept[0]
        value = value.clone()
        value[:, :, head] = kept[0][:, :, head]
        return value

    def keep(value: Tensor, hook: object) -> None:
        kept.append(value.clone())

    loss(model, [(f"{block}.hook_resid_{stream}", lambda value, hook: value + change), (f"{block}.{output}", keep)])
    return loss(model, [(f"{block}.{output}", put)])


@pytest.mark.parametrize("seed", range(10))
def test_knock_outs_equal_patching_with_transformer_lens(seed: int) -> None:
    """Of edges, and of all that a head sends; and EAP is the slope of a knock-out (LayerNorm is in float32)."""
    model = architecture(seed)
    with assert_given_back(model):
        whole = circuits.circuit_model(model, BATCH, counterfactual=OTHER.tokens)
        effects, slopes = whole.effects(), circuits.discover(whole, "eap").score
    own, other = written(model, BATCH.tokens), written(model, OTHER.tokens)
    clean, size, steepest = loss(model), float(effects.abs().max()), float(slopes.abs().max())
    assert whole.mean_cost(whole.full) == pytest.approx(float(clean), rel=1e-9)
    for part in random.Random(seed).sample(range(len(whole)), 8):
        sender, reader = whole.edges[part]
        change = other[sender] - own[sender]
        assert float(effects[part]) == pytest.approx(float(nudged(model, reader, change) - clean), abs=1e-8 * size)
        slope = float(nudged(model, reader, 1e-3 * change) - nudged(model, reader, -1e-3 * change)) / 2e-3
        assert float(slopes[part]) == pytest.approx(slope, abs=2e-3 * steepest)
    head, layer = model.cfg.n_heads - 1, model.cfg.n_layers - 1

    def put(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, head] = other["z"][layer][:, :, head]
        return z

    mask = torch.tensor([sender != f"L{layer}H{head}" for sender, _ in whole.edges])
    patched = loss(model, [(f"blocks.{layer}.attn.hook_z", put)])
    assert whole.mean_cost(mask) - float(clean) == pytest.approx(float(patched - clean), abs=1e-8 * size)


@pytest.mark.parametrize("counterfactual", circuits.COUNTERFACTUALS)
def test_any_model_can_be_checked_hooks_of_its_own_included(counterfactual: str) -> None:
    scaled = users_model(n_ctx=T)
    scaled.add_hook("blocks.0.attn.hook_z", lambda value, hook: 0.5 * value)
    normalized = {"n_ctx": T, "normalization_type": "LN"}  # on TransformerLens 4 these are bridges
    for model in (users_model(**normalized), users_model(**normalized, attn_only=False, d_mlp=8), scaled):
        with assert_given_back(model):
            checks = circuits.self_checks(model, BATCH, counterfactual=counterfactual)
        assert all(check.passed for check in checks)


def test_what_hooks_cannot_do_is_refused_by_name() -> None:
    build = circuits.circuit_model
    mlp = {"attn_only": False, "d_mlp": 8, "n_ctx": T}
    assert_refused(lambda: build(users_model(n_ctx=T, n_key_value_heads=2), BATCH), "n_key_value_heads=2")
    assert_refused(lambda: build(users_model(n_ctx=T, attention_dir="bidirectional"), BATCH), "causal", "bidirectional")
    assert_refused(lambda: build(users_model(parallel_attn_mlp=True, **mlp), BATCH), "parallel_attn_mlp")
    assert_refused(lambda: build(users_model(n_ctx=T), BATCH, granularity="slot"), "no disentangled residual stream")
    rotary = users_model(n_ctx=T, positional_embedding_type="rotary", rotary_dim=4)
    assert_refused(lambda: build(rotary, BATCH, counterfactual="permute"), "embeddings of positions", "'resample'")
    scaled = users_model(**mlp)
    scaled.add_hook("blocks.0.hook_attn_out", lambda value, hook: 2 * value)
    assert_refused(lambda: build(scaled, BATCH), "blocks.0.hook_resid_mid", "not the sum")
    deaf = users_model(**mlp)
    deaf.blocks[1].attn.hook_q = torch.nn.Identity()  # the HookPoint stays in hook_dict, and is not called
    assert_refused(lambda: build(deaf, BATCH), "blocks.1.attn.hook_q", "never called")
    blown_up = users_model(n_ctx=T)
    blown_up.add_hook("blocks.0.attn.hook_z", lambda value, hook: value * torch.nan)
    assert_refused(lambda: build(blown_up, BATCH), "must predict finite numbers")
    with torch.inference_mode():
        built_there = users_model(n_ctx=T)
    assert_refused(lambda: build(built_there, BATCH), "outside torch.inference_mode()")


def test_sequences_of_inference_mode_and_more_edges_than_are_enumerated() -> None:
    with torch.inference_mode():
        batch = TASK.sample(4)
    whole = circuits.circuit_model(users_model(n_ctx=T, n_heads=2), batch)
    assert circuits.discover(whole, "eap").score.isfinite().all()
    assert not circuits.oracle_frontier(whole, max_edges=2).exact
