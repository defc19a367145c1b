"""Discovery methods: gradients against finite differences of a slow forward, and what each finds in planted models."""

from functools import cache

import oracles
import pytest
import torch
from assertions import assert_given_back, assert_refused
from test_circuits_evaluate import S, T, case, final_stream, weights_of
from torch import Tensor

import causal_circuits as cc
from causal_circuits import circuits, interventions
from causal_circuits.circuits.entries import ENTRY_COUNTERFACTUALS
from causal_circuits.circuits.methods import Parts

GRAPHS = {
    "chain": cc.chain_graph(10),
    "pairs": cc.pairs_graph(10),
    "forest": cc.random_forest(10, 0.3, seed=2),
    "two parents": cc.ngram_graph(10, order=2),
}


@cache
def planted(name: str) -> tuple[cc.InContextTask, circuits.EntryModel, circuits.CircuitModel]:
    task = cc.InContextTask(GRAPHS[name], d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(150, seed=1)
    return task, circuits.entry_model(model, batch), circuits.circuit_model(model, batch)


@cache
def by_divergence(name: str) -> circuits.CircuitModel:
    """The same model, judged by KL(whole model || circuit): nonnegative on every sequence, zero if nothing moved."""
    task, _, whole = planted(name)
    return circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), whole.batch, metric="kl_to_model")


# ---- what the numbers are


@pytest.mark.parametrize("points", [(1.0,), (0.0, 0.25, 0.5, 0.75)])
@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1)], ids=str)
def test_attributions_are_derivatives_along_edges(n_heads: tuple[int, int], points: tuple[float, ...]) -> None:
    """Nudge what arrives along one edge from the clean to the other run's value, at points between their inputs."""
    model, batch = case(n_heads)
    other = cc.InContextTask(cc.chain_graph(T), d_vocab=S).sample(len(batch), seed=1).tokens
    whole = circuits.circuit_model(model, batch, counterfactual=other)
    found = whole.attributions(points, "counterfactual")
    weights, slots = weights_of(model, n_heads), oracles.slot_ranges(S, T, n_heads)
    clean, corrupted = (final_stream(model, n_heads, tokens) for tokens in (batch.tokens, other))
    ends = [oracles.embedding_of(tokens, S) for tokens in (other, batch.tokens)]

    def loss(edge: tuple[str, str], nudge: float, point: float) -> float:
        def arrives(slot: str, reader: str, own: Tensor) -> Tensor:
            where = slots[slot]
            is_edge = (slot.split(".")[0], reader) == edge
            return own + nudge * (corrupted - clean)[..., where] if is_edge else own

        embedding = ends[0] + point * (ends[1] - ends[0])
        logits, _ = oracles.circuit_forward(*weights, embedding, slots, arrives)
        return float(oracles.cross_entropies(logits, batch.target_probs).mean())

    step = 1e-5
    for part, edge in enumerate(whole.edges):
        slopes = [(loss(edge, step, point) - loss(edge, -step, point)) / (2 * step) for point in points]
        assert float(found[part]) == pytest.approx(sum(slopes) / len(slopes), abs=1e-7)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("counterfactual", ENTRY_COUNTERFACTUALS)
def test_keeping_some_entries_is_cutting_the_others(counterfactual: str) -> None:
    """One entry replaced in a plain forward equals its effect, and its cost as one part less; slow: entry by entry."""
    model, batch = case((2, 1))
    parts = circuits.entry_model(model, batch, counterfactual=counterfactual, seed=3)
    other = slow_replacement(model, batch.tokens, counterfactual, seed=3)
    one_less = ~torch.eye(len(parts), dtype=torch.bool)[::7]
    harm = parts.costs(one_less).mean(dim=-1) - parts.costs(parts.full[None]).mean()
    assert torch.allclose(harm, parts.effects()[::7], atol=1e-6)
    whole = slow_loss(model, batch, lambda pattern: pattern)
    for effect, (head, i, j) in zip(harm.tolist(), parts.edges[::7], strict=True):

        def replace(pattern: Tensor, head: int = head, i: int = i, j: int = j) -> Tensor:
            pattern = pattern.clone()
            pattern[:, head, i, j] = other[:, head, i, j]
            return pattern

        assert effect == pytest.approx(slow_loss(model, batch, replace) - whole, abs=1e-6)
    nothing = parts.costs(~parts.full[None]).mean()
    assert float(nothing) == pytest.approx(slow_loss(model, batch, lambda pattern: other), abs=1e-6)
    assert harm.abs().max() > 1e-4


@pytest.mark.parametrize("counterfactual", ENTRY_COUNTERFACTUALS)
def test_entry_attributions_are_slopes_on_the_way_to_the_counterfactual(counterfactual: str) -> None:
    """Finite differences of a plain forward whose pattern lies between the replacement and its own."""
    model, batch = case((2, 1))
    parts = circuits.entry_model(model, batch, counterfactual=counterfactual, seed=3)
    other = slow_replacement(model, batch.tokens, counterfactual, seed=3)
    points, step = (0.0, 0.25, 0.5, 1.0), 1e-4
    found = parts.attributions(points, "counterfactual")
    for part in range(0, len(parts), 5):
        only = torch.zeros(2, T, T, dtype=torch.float64)
        only[parts.edges[part]] = 1.0

        def loss(by: float, point: float, only: Tensor = only) -> float:
            return slow_loss(model, batch, lambda pattern: pattern + (1 - point + by * only) * (other - pattern))

        slopes = [(loss(step, point) - loss(-step, point)) / (2 * step) for point in points]
        assert float(found[part]) == pytest.approx(sum(slopes) / len(slopes), abs=1e-6)
    assert found.abs().max() > 1e-4


@pytest.mark.parametrize("metric", ["loss", "kl_to_model"])
def test_integrated_gradients_of_entries_add_up_to_the_whole_change(metric: str) -> None:
    """Completeness (Sundararajan et al. 2017): their sum is cost(all replaced) - cost(clean), to order 1 / steps."""
    model, batch = case((2, 1))
    parts = circuits.entry_model(model, batch, metric=metric)
    change = float((parts.costs(~parts.full[None]) - parts.costs(parts.full[None])).mean())
    errors = [abs(float(circuits.discover(parts, "eap_ig", steps=n).score.sum()) - change) for n in (2, 8, 32)]
    assert abs(change) > 1e-3
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_eap_at_zero_is_gradient_times_attention_and_nothing_by_the_divergence() -> None:
    model, batch = case((2, 1))
    by_loss, by_divergence = (circuits.entry_model(model, batch, metric=m) for m in ("loss", "kl_to_model"))
    eap, product = (circuits.discover(by_loss, name).score for name in ("eap", "gradient_x_attention"))
    assert torch.allclose(eap, product, atol=1e-12)
    assert eap.abs().max() > 1e-3
    assert circuits.discover(by_divergence, "eap").score.abs().max() < 1e-9
    with cc.recording.watch_attention(model) as watched:
        cc.log_probs(model, batch.tokens)
    assert torch.allclose(by_loss.matrices(by_loss.attention()), watched.patterns[0].mean(dim=0), atol=1e-9)


def slow_loss(model, batch: cc.Batch, change) -> float:
    """The plain forward's mean loss with layer 0's pattern changed."""
    hook = ("blocks.0.attn.hook_pattern", lambda pattern, hook: change(pattern))
    with torch.no_grad(), model.hooks(fwd_hooks=[hook]):
        logits = model(batch.tokens)[:, -1].double()
    return float(-(batch.target_probs.double() * logits.log_softmax(dim=-1)).sum(dim=-1).mean())


@torch.no_grad()
def slow_replacement(model, tokens: Tensor, counterfactual: str, seed: int) -> Tensor:
    """Layer 0's pattern in the run that the replacement comes from, by a plain forward, sequence by sequence."""
    seen: dict[str, Tensor] = {}
    look = ("blocks.0.attn.hook_pattern", lambda pattern, hook: seen.update(pattern=pattern))
    hooks = [look]
    if counterfactual == "resample":
        tokens = torch.stack([tokens[donor] for donor in interventions.other_sequences(len(tokens), seed)])
    if counterfactual == "permute":
        names = interventions.other_positions(*tokens.shape, seed)
        rename = torch.stack([model.W_pos[row] for row in names])
        hooks.append(("hook_pos_embed", lambda embedding, hook: rename))
    with model.hooks(fwd_hooks=hooks):
        model(tokens)
    pattern = seen["pattern"]
    constants = {"zero": torch.zeros_like(pattern), "mean": pattern.mean(dim=0, keepdim=True).expand_as(pattern)}
    return constants.get(counterfactual, pattern)


def test_acdc_walks_backwards_and_cuts_for_good() -> None:
    """Two edges that stand in for each other: exact knock-out misses both, ACDC keeps the one it meets last."""

    class TwoForOne(Parts):
        edges = ("a", "b", "idle")

        def costs(self, masks: Tensor) -> Tensor:
            return (~(masks[:, 0] | masks[:, 1])).double()[:, None]

        def attention(self) -> Tensor:
            raise NotImplementedError

        def gradient_times_attention(self) -> Tensor:
            raise NotImplementedError

        def attributions(self, points: tuple[float, ...], difference: str) -> Tensor:
            raise NotImplementedError

    found = circuits.discover(TwoForOne(), "acdc", threshold=0.5)
    assert found.score.tolist() == [1.0, 0.0, 0.0]
    assert circuits.discover(TwoForOne(), "exact").score.tolist() == [0.0, 0.0, 0.0]


# ---- what they find where the truth is known


@pytest.mark.parametrize("name", GRAPHS)
def test_no_counterfactual_on_other_tokens_sees_the_graph(name: str) -> None:
    """Layer 0 attends by position: its pattern is the same on all tokens, so cutting sees as little as gradients do.

    That the position edges are used is read off the divergence from the whole model against the mean.
    """
    _, parts, whole = planted(name)
    model, batch = parts.model, whole.batch
    for counterfactual in ("resample", "mean"):
        blind = circuits.entry_model(model, batch, counterfactual=counterfactual)
        for method in ("exact", "eap", "eap_ig"):
            assert circuits.discover(blind, method).score.abs().max() < 1e-6
    for method in ("eap", "eap_ig"):
        assert circuits.discover(parts, method, difference="pairs").score.abs().max() < 1e-6
    resampled = circuits.circuit_model(model, batch, counterfactual="resample", metric="kl_to_model")
    used = dict(zip(whole.edges, circuits.discover(by_divergence(name), "exact").score.tolist(), strict=True))
    unseen = dict(zip(whole.edges, circuits.discover(resampled, "exact").score.tolist(), strict=True))
    for reader in ("L0H0.q", "L0H0.k"):
        assert used["position", reader] > 0.01
        assert abs(unseen["position", reader]) < 1e-6
        for method in ("eap", "eap_ig"):
            score = circuits.discover(whole, method, difference="pairs").score
            assert abs(float(score[whole.edges.index(("position", reader))])) < 1e-6


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["chain", "pairs", "forest"])
def test_integrated_gradients_find_a_planted_forest_when_asked_what_cutting_is_asked(name: str, seed: int) -> None:
    """From weights of zero, by the divergence: every edge above every other entry, as by exact knock-out."""
    task = cc.InContextTask(GRAPHS[name], d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(512, seed=(seed, 3))
    parts = circuits.entry_model(model, batch, metric="kl_to_model", counterfactual="zero")
    for method in ("exact", "eap_ig"):
        scores = circuits.score_against_graph(parts.matrices(circuits.discover(parts, method).score), task.graph)
        assert (scores.auroc, scores.exact_parent_rate) == (1.0, 1.0), method


def test_integrated_gradients_miss_a_planted_star_that_cutting_sees() -> None:
    """Its children match all or none, so that all entries together are worth nothing, and one alone something."""
    task = cc.InContextTask(cc.graph_from_parents([None] + [0] * 8), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(300, seed=1)
    parts = circuits.entry_model(model, batch, metric="kl_to_model", counterfactual="zero")
    child, parent = zip(*((c, p) for p, c in cc.latent_edges(task.graph)), strict=True)
    cut, integrated = (parts.matrices(circuits.discover(parts, m).score)[0, child, parent] for m in ("exact", "eap_ig"))
    assert cut.min() > 1e-5
    assert integrated.abs().max() < 1e-7
    assert parts.mean_costs(torch.zeros(1, len(parts), dtype=torch.bool)) < 1e-7


@pytest.mark.parametrize("name", GRAPHS)
def test_exact_knock_out_finds_the_planted_circuit(name: str) -> None:
    """A prediction moves if and only if an edge with weights on it is cut: the divergence is positive or it is zero."""
    whole = by_divergence(name)
    used = ~circuits.inert_edges(whole)
    for method in ("exact", "acdc"):
        score = circuits.discover(whole, method, **({"threshold": 1e-5} if method == "acdc" else {})).score
        assert (score[used] > 1e-4).all()
        assert score[~used].abs().max() < 1e-6


def test_a_method_that_needs_a_gradient_says_so() -> None:
    model, batch = case((1, 1))
    whole = circuits.circuit_model(model, batch, metric="accuracy")
    assert_refused(lambda: circuits.discover(whole, "eap"), "'accuracy' has no gradient", "'loss'")
    assert circuits.discover(whole, "exact").score.shape == (19,)


def test_discovery_gives_the_model_back_and_follows_its_seed() -> None:
    model, batch = case((1, 1))
    with assert_given_back(model):
        whole, parts = circuits.circuit_model(model, batch), circuits.entry_model(model, batch)
        for method in circuits.METHODS:
            for of in (whole, parts):
                found = circuits.discover(of, method)
                assert found.score.shape == (len(of),)
                assert found.score.isfinite().all()
                assert found.circuit(3).sum() == 3
    one, same, other = (circuits.discover(whole, "random", seed=seed).score for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_bad_methods_are_named() -> None:
    model, batch = case((1, 1))
    whole = circuits.circuit_model(model, batch)
    assert_refused(lambda: circuits.discover(whole, "probe"), "exact", "attention", "eap_ig", "acdc", "random")
    assert_refused(lambda: circuits.discover(whole, "acdc", threshold=0.0), "threshold must be positive")
    assert_refused(lambda: circuits.discover(whole, "eap", difference="noise"), "pairs", "counterfactual", "'noise'")
    assert_refused(lambda: circuits.discover(whole, "exact").circuit(20), "0 .. 19", "20")
    refused = lambda: circuits.entry_model(model, batch, counterfactual="noise")  # noqa: E731
    assert_refused(refused, "zero", "mean", "resample", "permute", "'noise'")
    assert_refused(lambda: circuits.entry_model(model, batch, layer=1), "before the last", "1 of 2 layers")
