"""Ablation, knock-out and patching: against loops, against TransformerLens, and always giving the model back."""

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import causal_circuits as cc
from causal_circuits.interventions import KNOCK_OUT_METHODS, other_positions
from causal_circuits.models import HookedTransformer, live_heads

HEADS = [(1, 1), (2, 1), (1, 2)]
Weights = tuple[oracles.Attention, Tensor]


def case(n_heads: tuple[int, int], n: int = 5) -> tuple[HookedTransformer, cc.Batch, Weights]:
    """A random model over 5 positions and 3 tokens, a batch, and the model's weights for the oracle."""
    model = cc.disentangled_transformer(3, 5, n_heads, init_scale=0.6, seed=2)
    batch = cc.InContextTask(cc.chain_graph(5), d_vocab=3).sample(n, seed=0)
    return model, batch, oracles.weights_of(model, 3, 5, n_heads)


def oracle_losses(weights: Weights, batch: cc.Batch) -> Tensor:
    run = oracles.disentangled_forward(*weights, batch.tokens, 3)
    return oracles.cross_entropies(run.logits, batch.target_probs).detach()


def standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


# ---- ablation


@pytest.mark.parametrize("n_heads", HEADS, ids=str)
@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_ablation_equals_loops(n_heads: tuple[int, int], method: str) -> None:
    """Resampling between two sequences exchanges them."""
    model, batch, weights = case(n_heads, n=2 if method == "resample" else 5)
    replaced = {
        "zero": torch.zeros_like,
        "mean": lambda z: z.mean(dim=0, keepdim=True),
        "resample": lambda z: z.flip(0),
    }
    before = oracle_losses(weights, batch)
    written = oracles.disentangled_forward(*weights, batch.tokens, 3).written
    for heads in [[head] for head in live_heads(model)] + [live_heads(model)]:  # together: each its untouched mean
        replacement = {head: replaced[method](written[head].detach()) for head in heads}
        after = oracles.losses_with_heads_replaced(*weights, batch.tokens, batch.target_probs, 3, replacement).detach()
        with assert_given_back(model):
            found = cc.ablate_heads(model, batch, heads, method)
        assert found.loss == pytest.approx(float(after.mean()), rel=1e-5)
        assert found.baseline_loss == pytest.approx(float(before.mean()), rel=1e-5)
        assert found.standard_error == pytest.approx(standard_error(after - before), rel=1e-3, abs=1e-7)
        assert found.heads == tuple(heads)
        assert found.method == method
        assert abs(found.loss - found.baseline_loss) > 1e-4


def test_resampling_follows_its_seed_and_global_randomness_is_left_alone() -> None:
    model, batch, _ = case((1, 1), n=40)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    losses = [cc.ablate_heads(model, batch, [(0, 0)], "resample", seed=seed).loss for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert losses[0] == losses[1] != losses[2]


def test_ablation_works_within_autocast() -> None:
    model, batch, _ = case((2, 1), n=23)
    ordinary = cc.models.ordinary_transformer(model.cfg.d_vocab, model.cfg.n_ctx)
    for method in cc.interventions.ABLATION_METHODS:
        exact = cc.ablate_heads(ordinary, batch, [(0, 0)], method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert cc.ablate_heads(ordinary, batch, [(0, 0)], method).loss == pytest.approx(exact.loss, abs=0.02)


def test_ablation_in_several_pieces_is_ablation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, _ = case((2, 1), n=23)
    methods = cc.interventions.ABLATION_METHODS
    whole = {method: cc.ablate_heads(model, batch, [(0, 1), (1, 0)], method) for method in methods}
    monkeypatch.setattr("causal_circuits.tasks.batch.CHUNK", 5)
    for method, expected in whole.items():
        found = cc.ablate_heads(model, batch, [(0, 1), (1, 0)], method)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-4)


def test_the_circuits_heads_carry_the_whole_gain() -> None:
    task = cc.InContextTask(cc.chain_graph(12), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, readout_scale=4.0), task.sample(500, seed=0)
    no_circuit = cc.ablate_heads(model, batch, [(1, 0)], "zero")
    assert no_circuit.loss == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    assert no_circuit.share_of_gain_lost(no_circuit.loss) == pytest.approx(1.0)
    assert cc.ablate_heads(model, batch, [(0, 0)], "mean").share_of_gain_lost(no_circuit.loss) > 0.3
    useless = cc.interventions.AblationResult(((0, 0),), "zero", loss=1.0, baseline_loss=1.0, standard_error=0.0)
    share = useless.share_of_gain_lost(reference_loss=0.5)
    assert share != share, "no gain, no share"


# ---- knock-out


@pytest.mark.parametrize("copies", [1, 3, 7, 64])
def test_knock_outs_do_not_depend_on_how_many_run_at_once(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, _ = case((2, 1), n=7)
    expected = cc.knock_out_edges(model, batch)
    monkeypatch.setattr("causal_circuits.interventions.knock_out.COPIES", copies)
    found = cc.knock_out_edges(model, batch)
    assert torch.allclose(found.effect, expected.effect, atol=1e-6, equal_nan=True)
    assert torch.allclose(found.standard_error, expected.standard_error, atol=1e-6, equal_nan=True)
    assert torch.allclose(found.attention, expected.attention, atol=1e-6)
    assert found.baseline_loss == pytest.approx(expected.baseline_loss, rel=1e-6)


def test_chosen_entries_alone_are_cut_each_once() -> None:
    model, batch, _ = case((2, 1))
    everything, entries = cc.knock_out_edges(model, batch).effect, [(1, 4, 2), (0, 3, 3), (1, 2, 0)]
    assert everything.isnan().equal(torch.ones(2, 5, 5).triu(1).bool())
    found = cc.knock_out_edges(model, batch, entries=entries * 2).effect
    chosen = tuple(torch.tensor(entries).T)
    assert torch.allclose(found[chosen], everything[chosen], atol=1e-6)
    assert int((~found.isnan()).sum()) == 3


@settings(max_examples=12)
@given(
    d_vocab=st.integers(2, 20),
    n_ctx=st.integers(2, 10),
    n_heads=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    n=st.integers(1, 4),
    layer=st.integers(0, 1),
    method=st.sampled_from(["zero", "renormalize"]),
    seed=st.integers(0, 10_000),
)
def test_a_cut_entry_of_a_model_of_any_size_costs_what_a_loop_says(d_vocab, n_ctx, n_heads, n, layer, method, seed):
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.3, seed=seed)
    batch = cc.Batch(*draw(d_vocab, n_ctx, n, seed))
    generator = np.random.default_rng(seed)
    head, query = int(generator.integers(n_heads[layer])), int(generator.integers(n_ctx))
    key = int(generator.integers(query + 1))
    with assert_given_back(model):
        found = cc.knock_out_edges(model, batch, layer=layer, method=method, entries=[(head, query, key)])
    weights = oracles.weights_of(model, d_vocab, n_ctx, n_heads)
    run = oracles.disentangled_forward(*weights, batch.tokens, d_vocab)
    before = oracles.cross_entropies(run.logits, batch.target_probs)
    after = oracles.losses_with_entry_cut(
        *weights, batch.tokens, batch.target_probs, d_vocab, layer, head, query, key, method == "renormalize"
    )
    harm = (after - before).detach()
    assert float(found.effect[head, query, key]) == pytest.approx(float(harm.mean()), abs=1e-5, rel=1e-4)
    error = float(harm.std()) / n**0.5 if n > 1 else np.inf
    assert float(found.standard_error[head, query, key]) == pytest.approx(error, abs=1e-5, rel=1e-3)
    assert found.baseline_loss == pytest.approx(float(before.detach().mean()), rel=1e-5)
    assert_close(found.attention[head], run.patterns[layer, head].detach().mean(dim=0), 1e-5)


# ---- patching


def first_token_log_prob(log_probs: Tensor) -> Tensor:
    return log_probs[:, 0].mean()


def pair() -> tuple[HookedTransformer, Tensor, Tensor]:
    model, batch, _ = case((2, 1), n=12)
    return model, batch.tokens[:6], batch.tokens[6:]


def test_patching_everything_at_the_entrance_recovers_the_clean_run() -> None:
    model, clean, corrupted = pair()
    result = cc.patch_activations(model, clean, corrupted, first_token_log_prob, by_position=False)
    names = [f"blocks.{layer}.{point}" for layer in (0, 1) for point in ("hook_resid_pre", "attn.hook_z")]
    assert result.names == tuple(names)
    assert abs(result.clean - result.corrupted) > 1e-3
    assert torch.allclose(result.recovered[[0, 2]], torch.ones(2, 1), atol=1e-4)


def test_patching_equals_loops_over_token_replacements() -> None:
    """Patching the embedding of one position is replacing its token."""
    model, clean, corrupted = pair()
    weights = oracles.weights_of(model, 3, 5, (2, 1))
    with assert_given_back(model):
        result = cc.patch_activations(model, clean, corrupted, first_token_log_prob, names=["hook_embed"])
    assert result.metric.shape == (1, 5)
    for position in range(5):
        mixed = corrupted.clone()
        mixed[:, position] = clean[:, position]
        logits = oracles.disentangled_forward(*weights, mixed, 3).logits
        expected = float(first_token_log_prob(logits.detach().log_softmax(dim=-1)))
        assert float(result.metric[0, position]) == pytest.approx(expected, rel=1e-5)


# ---- more counterfactuals, metrics and slots


@pytest.mark.parametrize("method", KNOCK_OUT_METHODS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("n_heads", [(2, 1), (1, 2)], ids=str)
def test_the_closed_form_equals_hooks(n_heads: tuple[int, int], layer: int, method: str) -> None:
    model, batch, _ = case(n_heads, n=7)
    closed, hooked = (
        cc.knock_out_edges(model, batch, layer=layer, method=method, path=path) for path in ("closed_form", "hooks")
    )
    assert (closed.path, hooked.path) == ("closed_form", "hooks")
    assert torch.allclose(closed.effect, hooked.effect, atol=2e-6, equal_nan=True)
    assert torch.allclose(closed.standard_error, hooked.standard_error, atol=2e-6, equal_nan=True)
    assert closed.effect.nan_to_num().abs().max() > 1e-4


def test_the_closed_form_stays_exact_at_saturated_softmaxes() -> None:
    task = cc.InContextTask(cc.random_forest(8, 0.3, seed=1), d_vocab=3)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, attention_scale=60.0, match_scale=90.0), task.sample(40)
    closed, hooked = (cc.knock_out_edges(model, batch, path=path).effect for path in ("closed_form", "hooks"))
    assert closed[0][torch.ones(8, 8).tril().bool()].isfinite().all()
    assert torch.allclose(closed, hooked, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("method", ["mean", "resample", "permute"])
def test_entries_are_replaced_by_what_the_method_says(method: str) -> None:
    """Two sequences: a mean is their mean, another sequence's is the other's; three keys: a permuted entry moves."""
    model, batch, weights = case((1, 1), n=2)
    pattern = oracles.disentangled_forward(*weights, batch.tokens, 3).patterns[0, 0].detach()
    row = {
        "mean": lambda: torch.cat([pattern[:, 1, :1].mean().expand(2, 1), pattern[:, 1, 1:]], dim=1),
        "resample": lambda: torch.cat([pattern[:, 1, :1].flip(0), pattern[:, 1, 1:]], dim=1),
        "permute": lambda: torch.cat([pattern[:, 1, :2].flip(1), pattern[:, 1, 2:]], dim=1),
    }[method]()

    def edit(layer: int, head: int, own: Tensor) -> Tensor:
        own = own.clone()
        if layer == 0:
            own[:, 1] = row
        return own

    logits = oracles.disentangled_forward(*weights, batch.tokens, 3, edit_pattern=edit).logits
    after = oracles.cross_entropies(logits, batch.target_probs).detach().mean()
    found = cc.knock_out_edges(model, batch, entries=[(0, 1, 0)], method=method)
    expected = float(after - oracle_losses(weights, batch).mean())
    assert float(found.effect[0, 1, 0]) == pytest.approx(expected, abs=1e-6)


def test_heads_can_be_read_at_other_positions() -> None:
    """Permuting is a law-abiding shuffle: it keeps each sequence's values, and the circuit that needs places breaks."""
    donors = other_positions(50, 6, seed=0)
    assert donors.sort(dim=1).values.equal(torch.arange(6).expand(50, 6))
    assert (donors != torch.arange(6)).all()
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(300)
    with assert_given_back(model):
        heads = cc.ablate_heads(model, batch, [(0, 0)], "permute")
    assert heads.loss > heads.baseline_loss + 0.1


@pytest.mark.parametrize("metric", cc.interventions.METRICS)
def test_effects_have_one_sign_by_every_metric(metric: str) -> None:
    """Without its induction head a planted model is worse by every metric, whichever way the metric points."""
    task = cc.InContextTask(cc.chain_graph(10), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, readout_scale=2.0), task.sample(1500)
    ablated = cc.ablate_heads(model, batch, [(1, 0)], "zero", metric=metric, task=task)
    assert (ablated.loss < ablated.baseline_loss) == (metric in ("logit_difference", "accuracy"))
    assert ablated.metric == metric
    if metric == "kl_to_model":
        cut = cc.knock_out_edges(model, batch, metric=metric)
        assert (cut.effect.nan_to_num() >= -1e-6).all(), "the untouched model is nearest to itself"


# ---- path patching


def test_path_patching_equals_the_slow_forward() -> None:
    """Along each path readers get the path's value; everything else is the corrupted run's."""
    model, clean, corrupted = pair()
    weights, slots = oracles.weights_of(model, 3, 5, (2, 1)), oracles.slot_ranges(3, 5, (2, 1))
    with assert_given_back(model):
        found = cc.patch_paths(model, clean, corrupted, first_token_log_prob)
    assert not model.cfg.use_split_qkv_input
    base = oracles.circuit_forward(*weights, oracles.embedding_of(corrupted, 3), slots)[1].detach()
    moved = 0
    for name, value in zip(found.names, found.metric[:, 0].tolist(), strict=True):
        path = name.split(" -> ")
        edges = set(zip([path[0], *(node.split(".")[0] for node in path[1:-1])], path[1:], strict=True))

        def arrives(slot: str, reader: str, own: Tensor, edges: set[tuple[str, str]] = edges) -> Tensor:
            sender = slot.split(".")[0] if "." in slot else "embed"
            return own if (sender, reader) in edges else base[..., slots[slot]]

        logits, _ = oracles.circuit_forward(*weights, oracles.embedding_of(clean, 3), slots, arrives)
        expected = float(first_token_log_prob(logits.detach().log_softmax(dim=-1)))
        assert value == pytest.approx(expected, abs=2e-6), name
        moved += abs(value - found.corrupted) > 1e-4
    assert moved > 5


# ---- causal scrubbing


def test_a_true_hypothesis_costs_nothing_and_a_false_one_does() -> None:
    for graph in (cc.chain_graph(8), cc.random_forest(8, 0.3, seed=1), cc.ngram_graph(8, order=2)):
        task = cc.InContextTask(graph, d_vocab=3, alpha=0.1)
        model, batch = cc.plant_circuit(graph, d_vocab=3), task.sample(500)
        for claim in ("copy", "match", "both"):
            with assert_given_back(model):
                scrubbed = cc.scrub_hypothesis(model, batch, task, claim)
            assert scrubbed.recovered == pytest.approx(1.0, abs=1e-4)
            assert scrubbed.random_loss > scrubbed.baseline_loss + 0.05
    chain, other = (cc.InContextTask(g, d_vocab=3, alpha=0.1) for g in (cc.chain_graph(8), cc.pairs_graph(8)))
    model, batch = cc.plant_circuit(cc.chain_graph(8), d_vocab=3), other.sample(500)
    true, false = (cc.scrub_hypothesis(model, batch, t, "copy", metric="kl_to_model").loss for t in (chain, other))
    assert true == pytest.approx(0.0, abs=1e-6), "KL to the untouched model: zero if and only if nothing moved"
    assert false > 0.02


def test_scrubbing_children_leaves_alone_what_the_hypothesis_passes_over() -> None:
    """A planted model that also reads the query's own token directly: only the strict form of the claims sees that."""
    task = cc.InContextTask(cc.random_forest(10, 0.4, seed=2), d_vocab=3, alpha=0.3)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(1500, seed=1)
    with torch.no_grad():
        model.W_U[cc.models.slots(model)["token"].slice] += 2.0 * torch.eye(3)
    for claim in ("copy", "match", "both"):
        free = cc.scrub_hypothesis(model, batch, task, claim, where="children", metric="kl_to_model")
        strict = cc.scrub_hypothesis(model, batch, task, claim, metric="kl_to_model")
        assert free.loss == pytest.approx(0.0, abs=1e-6), "the claims hold to the letter at positions with parents"
        assert free.random_loss > 0.01
        assert (strict.loss > 0.01) == (claim != "copy"), "the direct path is none of the copying head's business"


ABLATE, CUT, SCRUB = cc.ablate_heads, cc.knock_out_edges, cc.scrub_hypothesis
REFUSED = [
    (lambda m, b, t: ABLATE(m, b, []), ["at least one"]),
    (lambda m, b, t: ABLATE(m, b, [(1, 1)]), ["no head 1 in layer 1", "(1, 0)"]),
    (lambda m, b, t: ABLATE(m, b, [(0, 0)], "noise"), ["zero, mean, resample", "'noise'"]),
    (lambda m, b, t: ABLATE(m, b, [(0, 0)], metric="f1"), ["loss, kl_to_model", "'f1'"]),
    (lambda m, b, t: ABLATE(m, b[:1], [(0, 0)], "resample"), ["at least 2", "1"]),
    (lambda m, b, t: CUT(m, b, method="noise"), ["zero, renormalize, mean", "'noise'"]),
    (lambda m, b, t: CUT(m, b, layer=2), ["2 layers", "2"]),
    (lambda m, b, t: CUT(m, b, entries=[(0, 1, 2)]), ["key <= query", "(1, 2)"]),
    (lambda m, b, t: CUT(m, b, entries=[(0, 5, 2)]), ["< 5", "(5, 2)"]),
    (lambda m, b, t: CUT(m, b, metric="kl_to_posterior"), ["task="]),
    (lambda m, b, t: CUT(m, b, path="fast"), ["auto, closed_form, hooks", "'fast'"]),
    (lambda m, b, t: SCRUB(m, b, t, "all"), ["copy, match, both", "'all'"]),
    (lambda m, b, t: SCRUB(cc.disentangled_transformer(3, 5, (1,)), b, t), ["two layers", "1"]),
    (lambda m, b, t: patch(m, b, names=["blocks.0.mlp.hook_post"]), ["no hook 'blocks.0.mlp.hook_post'", "hook_embed"]),
    (lambda m, b, t: follow(m, b, []), ["at least one path"]),
    (lambda m, b, t: follow(m, b, [("token", "logits")]), ["no node 'token'", "embed, L0H0"]),
    (lambda m, b, t: follow(m, b, [("embed", "L2H0.q", "logits")]), ["no node 'L2H0.q'", "L1H0.v"]),
    (lambda m, b, t: follow(m, b, [("embed", "L1H0.q")]), ["'logits' at the end"]),
    (lambda m, b, t: follow(m, b, [("L1H0", "L0H0.q", "logits")]), ["later and later layers"]),
]


def patch(model: HookedTransformer, batch: cc.Batch, **options: object) -> cc.interventions.PatchingResult:
    return cc.patch_activations(model, batch.tokens, batch.tokens, first_token_log_prob, **options)


def follow(model: HookedTransformer, batch: cc.Batch, paths: list[tuple[str, ...]]) -> cc.interventions.PatchingResult:
    return cc.patch_paths(model, batch.tokens, batch.tokens, first_token_log_prob, paths=paths)


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words[0] for _, words in REFUSED])
def test_bad_requests_are_named(call, words) -> None:
    model, batch, _ = case((2, 1))
    with assert_given_back(model):
        assert_refused(lambda: call(model, batch, cc.InContextTask(cc.chain_graph(5), d_vocab=3)), *words)


def test_hooks_are_no_closed_form() -> None:
    model, batch, _ = case((2, 1))
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern)
    assert_refused(lambda: CUT(model, batch, path="closed_form"), "has a hook", "path='hooks'")
