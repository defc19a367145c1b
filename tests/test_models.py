"""Disentangled transformers: plain, structured and oracle forwards agree; layouts, files, planted circuits."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_close, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_graphs import dag_parents
from torch import Tensor

import causal_circuits as cc
from causal_circuits import models
from causal_circuits.models import structured

D_VOCAB, N_CTX = 4, 5
HEADS = [(1, 1), (2, 1), (3, 2)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
TOKENS = torch.randint(D_VOCAB, (7, N_CTX), generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(7, D_VOCAB, generator=torch.Generator().manual_seed(1)), dim=-1)


def random_model(n_heads: tuple[int, ...], dtype: torch.dtype = torch.float32) -> models.HookedTransformer:
    return cc.disentangled_transformer(D_VOCAB, N_CTX, n_heads, init_scale=0.4, seed=5, dtype=dtype)


def plain_logits(model: models.HookedTransformer, tokens: Tensor) -> Tensor:
    return model(tokens, return_type="logits")[:, -1]


def gradients(model: models.HookedTransformer, logits: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy for every trainable parameter."""
    model.zero_grad(set_to_none=True)
    loss = -(TARGETS.to(logits.dtype) * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


# ---- three forwards, one model


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("n_heads", HEADS, ids=str)
def test_all_forwards_give_the_same_gradients(n_heads: tuple[int, int], dtype: torch.dtype) -> None:
    model = random_model(n_heads, dtype)
    attention, readout = oracles.weights_of(model, D_VOCAB, N_CTX, n_heads)
    logits = oracles.disentangled_forward(attention, readout, TOKENS, D_VOCAB).logits
    oracles.cross_entropies(logits, TARGETS).mean().backward()
    for forward in (plain_logits, models.structured_logits):
        found = gradients(model, forward(model, TOKENS))
        assert set(found) == {"blocks.0.attn.W_Q", "blocks.1.attn.W_Q", "unembed.W_U"}
        assert_close(found["unembed.W_U"], readout.grad, TOLERANCE[dtype])
        for layer, heads in enumerate(attention):
            gradient, rest = found[f"blocks.{layer}.attn.W_Q"], found[f"blocks.{layer}.attn.W_Q"].clone()
            for head, weights in enumerate(heads):
                width = len(weights)
                assert_close(gradient[head, :width, :width], weights.grad, TOLERANCE[dtype])
                rest[head, :width, :width] = 0.0
            assert not rest.any(), "what pads a head or a layer must stay untrained"


@settings(max_examples=12)
@given(
    d_vocab=st.integers(2, 20),
    n_ctx=st.integers(2, 24),
    n_heads=st.lists(st.integers(1, 3), min_size=1, max_size=2) | st.just([1, 2, 1]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_all_forwards_give_the_same_logits_at_any_size_and_depth(d_vocab, n_ctx, n_heads, batch, dtype, seed) -> None:
    model = cc.disentangled_transformer(d_vocab, n_ctx, tuple(n_heads), init_scale=0.3, seed=seed, dtype=dtype)
    tokens = torch.randint(d_vocab, (batch, n_ctx), generator=torch.Generator().manual_seed(seed))
    expected = oracles.disentangled_forward(*oracles.weights_of(model, d_vocab, n_ctx, n_heads), tokens, d_vocab).logits
    for forward in (plain_logits, models.structured_logits, models.logits):
        found = forward(model, tokens)
        assert found.dtype == dtype
        assert_close(found, expected, 2 * TOLERANCE[dtype])
    assert_close(models.log_probs(model, tokens), expected.log_softmax(dim=-1), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("every_position", [False, True], ids=["last", "every"])
def test_on_several_threads_gradients_are_the_same_bits_again(every_position: bool) -> None:
    task = cc.tasks.MarkovTask(n_ctx=30, d_vocab=3) if every_position else cc.InContextTask(cc.chain_graph(30), 3)
    model, batch = cc.disentangled_transformer(3, 30, init_scale=0.5), task.sample(512)
    forward = structured.choose_forward(model, every_position)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # rows of weights that are looked up by token used to be added in any order
    try:
        first, *again = (_gradient_bits(model, batch, forward) for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    assert all(bits == first for bits in again)


def _gradient_bits(model: models.HookedTransformer, batch: cc.Batch, forward: structured.Forward) -> list[bytes]:
    structured.autograd_step(model, batch, forward)
    return [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]


def test_a_backward_hook_elsewhere_falls_back_to_the_plain_forward() -> None:
    model, fired = random_model((1, 1)), []
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda gradient, hook: fired.append(gradient.shape))]):
        gradients(model, models.logits(model, TOKENS))
    assert fired == [(7, N_CTX, model.cfg.d_model)]


def test_a_transformer_that_is_not_ours_has_heads_and_no_slots() -> None:
    model = cc.models.ordinary_transformer(D_VOCAB, N_CTX, d_model=8, n_layers=1, n_heads=2)
    assert cc.models.live_heads(model) == [(0, 0), (0, 1)]
    assert not models.has_layout(model)
    assert_refused(lambda: cc.models.slots(model), "no disentangled residual stream", "disentangled_transformer")


# ---- building


def test_initial_values_follow_their_seed_and_scale() -> None:
    one, same, other = (cc.disentangled_transformer(8, 8, init_scale=0.1, seed=seed) for seed in (1, 1, 2))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, dict(same.named_parameters())[name])
        assert torch.equal(parameter, dict(other.named_parameters())[name]) != parameter.requires_grad
    assert one.W_U.std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("n_heads", HEADS, ids=str)
def test_slots_say_what_the_residual_stream_holds(n_heads: tuple[int, int]) -> None:
    """L1H0.L0H1.token holds pattern 1.0 times pattern 0.1 times the tokens, and so on for every slot."""
    model = random_model(n_heads)
    assert model.cfg.d_model == list(cc.models.slots(model).values())[-1].stop
    _, cache = model.run_with_cache(TOKENS)
    one_hot = torch.nn.functional.one_hot(TOKENS, D_VOCAB).float()
    final = cache["blocks.1.hook_resid_post"]
    for name, slot in cc.models.slots(model).items():
        *hops, half = name.split(".")
        content = one_hot if half == "token" else torch.eye(N_CTX).expand(len(TOKENS), -1, -1)
        for hop in reversed(hops):
            content = cache[f"blocks.{hop[1]}.attn.hook_pattern"][:, int(hop[3])] @ content
        assert_close(final[:, :, slot.slice], content, 1e-5)


def test_bad_models_are_refused() -> None:
    assert_refused(lambda: cc.disentangled_transformer(3, 5, ()), "n_heads", "(1, 1)", "()")
    assert_refused(lambda: cc.disentangled_transformer(3, 5, (1, 0)), "n_heads", "(1, 0)")
    assert_refused(lambda: models.structured_logits(random_model((1, 1)), TOKENS[:, :-1]), "[batch, n_ctx=5]", "[7, 4]")
    assert_refused(lambda: cc.models.attention_block(random_model((1, 1)), 0, 0, "tokens", "position"), "'tokens'")
    block, model = cc.models.attention_block, random_model((2, 1))
    assert_refused(lambda: block(model, 1, 1, "token", "token"), "no head 1 in layer 1", "(1, 0)")
    reduced = cc.reduced_transformer(3, 5)
    assert_refused(lambda: cc.models.attention_block(reduced, 0, 0, "token", "token"), "reduced", "W_Q")


# ---- the reduced model


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("d_vocab", "n_ctx"), [(4, 5), (5, 3)])
def test_the_reduced_model_is_the_papers(d_vocab: int, n_ctx: int, dtype: torch.dtype) -> None:
    model, generator = cc.reduced_transformer(d_vocab, n_ctx, dtype=dtype), torch.Generator().manual_seed(2)
    tokens = torch.randint(d_vocab, (6, n_ctx), generator=generator)
    targets = torch.softmax(torch.randn(6, d_vocab, generator=generator, dtype=torch.float64), dim=-1)
    a1 = torch.randn(n_ctx, n_ctx, generator=generator).double().requires_grad_()
    a2 = torch.randn(d_vocab, d_vocab, generator=generator).double().requires_grad_()
    slots = cc.models.slots(model)
    first = model.blocks[0].attn.W_Q[0, slots["position"].slice, :n_ctx]
    second = model.blocks[1].attn.W_Q[0, slots["token"].slice, :d_vocab]
    first.data.copy_(a1)
    # the paper's score of position i is (copied token i) . A2^T x_T, so the query's row is x_T^T A2
    second.data.copy_(a2)
    f = oracles.reduced_forward(a1, a2, tokens, d_vocab)
    assert_close(plain_logits(model, tokens), f, TOLERANCE[dtype])
    assert_close(models.logits(model, tokens), f, TOLERANCE[dtype])
    assert_close(models.log_probs(model, tokens), (f + 1e-9).log(), TOLERANCE[dtype])
    assert torch.allclose(f.sum(dim=-1), torch.ones(6, dtype=torch.float64))
    (-(targets * (f + 1e-9).log()).sum(dim=-1).mean()).backward()
    (-(targets.to(dtype) * models.log_probs(model, tokens)).sum(dim=-1).mean()).backward()
    assert_close(model.blocks[0].attn.W_Q.grad[0, slots["position"].slice, :n_ctx], a1.grad, TOLERANCE[dtype])
    assert_close(model.blocks[1].attn.W_Q.grad[0, slots["token"].slice, :d_vocab], a2.grad, TOLERANCE[dtype])


# ---- warm start and planted circuits


def test_warm_start_writes_the_match_and_the_readout() -> None:
    model, identity = cc.models.warm_start(cc.disentangled_transformer(D_VOCAB, N_CTX), 3.0), 3.0 * torch.eye(D_VOCAB)
    match = cc.models.attention_block(model, 1, 0, "token", "L0H0.token")
    assert torch.equal(match, identity)
    assert torch.equal(model.W_U[cc.models.slots(model)["L1H0.token"].slice], identity)
    assert model.W_Q.abs().sum() == identity.sum()
    assert model.W_U.abs().sum() == identity.sum()
    several = cc.models.warm_start(cc.disentangled_transformer(D_VOCAB, N_CTX, (2, 1)), 3.0)
    for head in range(2):
        assert torch.equal(cc.models.attention_block(several, 1, 0, f"L0H{head}.token", f"L0H{head}.token"), identity)
    reduced = cc.models.warm_start(cc.reduced_transformer(D_VOCAB, N_CTX), 3.0)
    assert reduced.W_Q.abs().sum() == identity.sum()
    assert_refused(lambda: cc.models.warm_start(random_model((1, 1, 1))), "two layers", "3")


def frequencies_after_matches(graph: object, tokens: list[int], d_vocab: int) -> np.ndarray:
    """How often each token follows the target's parents' tokens; over all children if no tokens match."""
    target = graph.number_of_nodes() - 1
    query = [tokens[p] for p in cc.graphs.parents_of(graph, target)]
    children = [i for i in range(target - 1) if graph.in_degree(i) == len(query)]
    matches = [i for i in children if [tokens[p] for p in cc.graphs.parents_of(graph, i)] == query]
    return np.bincount([tokens[i] for i in matches], minlength=d_vocab) / len(matches)


@pytest.mark.parametrize(
    "graph", [cc.chain_graph(8), cc.pairs_graph(8), cc.random_forest(9, 0.3, seed=1), cc.ngram_graph(9, 2)], ids=str
)
def test_planted_circuits_compute_the_right_attention(graph: object) -> None:
    task = cc.InContextTask(graph, d_vocab=3, alpha=1.0)
    model, tokens = cc.plant_circuit(graph, d_vocab=3), task.sample(64, seed=0).tokens
    _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.0.attn.hook_pattern"]
    for child in range(task.n_ctx - 1):
        for head, parent in enumerate(cc.graphs.parents_of(graph, child)):
            assert float(pattern[:, head, child, parent].min()) > 1 - 1e-6
    for head, parent in enumerate(task.target_parents):
        assert float(pattern[:, head, -1, parent].min()) > 1 - 1e-6
    has_match = cc.heads.induction_mask(task, tokens)[:, -1].any(dim=-1)
    assert has_match.sum() > 20
    expected = [frequencies_after_matches(graph, row, 3) for row in tokens[has_match].tolist()]
    found = models.logits(model, tokens[has_match]) / 3.0  # readout_scale
    assert_close(found, torch.from_numpy(np.stack(expected)), 1e-4)


@given(dag_parents())
def test_any_graph_can_be_planted(parents: list[list[int]]) -> None:
    if len(parents) < 3:
        parents = [[], *parents[:-1], [0]]  # a model needs two positions
    graph = cc.graph_from_parents(parents)
    model = cc.plant_circuit(graph, d_vocab=2)
    assert models.logits(model, torch.zeros(1, len(parents) - 1, dtype=torch.int64)).isfinite().all()
    for child in range(len(parents) - 2):
        for head, parent in enumerate(cc.graphs.parents_of(graph, child)):
            row = cc.models.attention_block(model, 0, head, "position", "position")[child]
            assert int(row.argmax()) == parent


def test_a_circuit_that_does_not_fit_is_refused() -> None:
    assert_refused(lambda: cc.plant_circuit(cc.ngram_graph(6, 2), n_heads=(1, 1)), "at least (2, 1)", "(1, 1)")
    planted = cc.plant_circuit(cc.chain_graph(5), 3, n_heads=(3, 2))
    assert cc.models.live_heads(planted) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # padding is left out


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    weights, config = tmp_path / "model.safetensors", tmp_path / "model.json"
    assert_refused(lambda: cc.load_model(tmp_path), "model.safetensors and model.json", "has no")
    cc.save_model(random_model((1, 1)), tmp_path)
    good = json.loads(config.read_text())
    for broken in (
        {**good, "format": "other/1"},
        {**good, "n_ctx": 1},
        {**good, "dtype": "int8"},
        {**good, "kind": "gated"},
        {"format": good["format"]},
        [],
        "{",
    ):
        config.write_text(broken if broken == "{" else json.dumps(broken))
        assert_refused(lambda: cc.load_model(tmp_path), "model.json", "does not describe a model")
    config.write_text(json.dumps({**good, "n_ctx": 6}))
    assert_refused(lambda: cc.load_model(tmp_path), "does not fit", "W_")
    config.write_text(json.dumps(good))
    save_file({name: t for name, t in load_file(weights).items() if name != "unembed.W_U"}, weights)
    assert_refused(lambda: cc.load_model(tmp_path), "model.safetensors", "unembed.W_U")
    weights.unlink()
    assert_refused(lambda: cc.load_model(tmp_path), "has no model.safetensors")
