"""Circuits evaluated exactly: against a slow forward that builds every reader's input by hand, and by their laws."""

import networkx as nx
import oracles
import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused
from torch import Tensor

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.models import HookedTransformer

S, T = 3, 5
HEADS = [(1, 1), (2, 1), (1, 2), (1, 1, 1)]


def case(n_heads: tuple[int, ...], n: int = 6) -> tuple[HookedTransformer, cc.Batch]:
    model = cc.disentangled_transformer(S, T, n_heads, init_scale=0.6, seed=2, dtype=torch.float64)
    return model, cc.InContextTask(cc.chain_graph(T), d_vocab=S).sample(n, seed=0)


def weights_of(model: HookedTransformer, n_heads: tuple[int, ...]) -> tuple[list[list[Tensor]], Tensor]:
    attention, readout = oracles.weights_of(model, S, T, n_heads)
    return [[a.detach() for a in heads] for heads in attention], readout.detach()


def oracle_log_probs(
    model: HookedTransformer,
    n_heads: tuple[int, ...],
    batch: cc.Batch,
    kept: set[tuple[str, str]],
    corrupted: Tensor,
    granularity: str,
) -> Tensor:
    """Log-probabilities when a reader gets a slot of the corrupted residual stream wherever the circuit has no edge."""
    slots = oracles.slot_ranges(S, T, n_heads)

    def arrives(slot: str, reader: str, own: Tensor) -> Tensor:
        sender = slot.split(".")[0] if granularity == "head" else slot
        return own if (sender, reader) in kept else corrupted[..., slots[slot]]

    embedding = oracles.embedding_of(batch.tokens, S)
    logits, _ = oracles.circuit_forward(*weights_of(model, n_heads), embedding, slots, arrives)
    return logits.log_softmax(dim=-1)


def final_stream(model: HookedTransformer, n_heads: tuple[int, ...], tokens: Tensor) -> Tensor:
    slots = oracles.slot_ranges(S, T, n_heads)
    return oracles.circuit_forward(*weights_of(model, n_heads), oracles.embedding_of(tokens, S), slots)[1]


@pytest.mark.parametrize("granularity", ["head", "slot"])
@pytest.mark.parametrize("n_heads", HEADS, ids=str)
def test_every_circuit_equals_the_slow_forward(n_heads: tuple[int, ...], granularity: str) -> None:
    model, batch = case(n_heads)
    other = cc.InContextTask(cc.chain_graph(T), d_vocab=S).sample(len(batch), seed=1).tokens
    with assert_given_back(model):
        whole = circuits.circuit_model(model, batch, counterfactual=other, granularity=granularity)
        masks = torch.rand(12, len(whole), generator=torch.Generator().manual_seed(0)) < 0.7
        found = whole.log_probs(masks)
    corrupted = final_stream(model, n_heads, other)
    for mask, log_probs in zip(masks, found, strict=True):
        kept = {edge for edge, keep in zip(whole.edges, mask.tolist(), strict=True) if keep}
        expected = oracle_log_probs(model, n_heads, batch, kept, corrupted, granularity)
        assert_close(log_probs, expected, 1e-10)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_constants_stand_in_for_what_is_cut(kind: str) -> None:
    model, batch = case((2, 1))
    whole = circuits.circuit_model(model, batch, counterfactual=kind, granularity="slot")
    stream, slots = final_stream(model, (2, 1), batch.tokens), oracles.slot_ranges(S, T, (2, 1))
    corrupted = torch.zeros(1, 1, stream.shape[-1], dtype=torch.float64)
    for slot, where in slots.items():
        if kind == "mean":  # only the last row of the last layer is ever read
            rows = stream[:, -1:, where] if slot.startswith("L1") else stream[..., where]
            corrupted[..., where] = rows.mean(dim=(0, 1))
    masks = torch.rand(8, len(whole), generator=torch.Generator().manual_seed(1)) < 0.6
    for mask, log_probs in zip(masks, whole.log_probs(masks), strict=True):
        kept = {edge for edge, keep in zip(whole.edges, mask.tolist(), strict=True) if keep}
        assert_close(log_probs, oracle_log_probs(model, (2, 1), batch, kept, corrupted, "slot"), 1e-10)


@pytest.mark.parametrize("kind", circuits.COUNTERFACTUALS)
@pytest.mark.parametrize("granularity", ["head", "slot"])
def test_the_laws_hold_for_every_kind_of_model(kind: str, granularity: str) -> None:
    task = cc.InContextTask(cc.random_forest(6, 0.3, seed=1), d_vocab=3)
    models = [
        cc.plant_circuit(task.graph, d_vocab=3),
        cc.disentangled_transformer(3, 6, (2, 1), init_scale=0.5),
        cc.models.warm_start(cc.reduced_transformer(3, 6)),
    ]
    for model in models:
        with assert_given_back(model):
            checks = circuits.self_checks(model, task.sample(20), counterfactual=kind, granularity=granularity)
        assert [check.law for check in checks if not check.passed] == []
        assert len(checks) == 5


def test_a_broken_law_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks compare with the plain forward: a read-out that goes wrong on one side alone does not pass."""
    model, batch = case((1, 1))
    monkeypatch.setattr("causal_circuits.circuits.forward.NEGLIGIBLE", 0.3)  # throws real attention away
    laws = {check.law: check.passed for check in circuits.self_checks(model, batch, counterfactual="resample")}
    assert not laws["the full circuit is the clean run"]
    assert laws["rows of attention sum to one"]


def test_the_order_and_the_company_of_circuits_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = case((2, 1))
    whole = circuits.circuit_model(model, batch, counterfactual="resample")
    masks = torch.rand(40, len(whole), generator=torch.Generator().manual_seed(3)) < 0.5
    together, order = whole.costs(masks), torch.randperm(40, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(whole.costs(masks[order]), together[order], atol=1e-12)
    monkeypatch.setattr("causal_circuits.circuits.forward.Forward.copies", 7)
    assert torch.allclose(whole.costs(masks), together, atol=1e-12)


def test_the_graph_of_two_layers_has_the_edges_of_the_field() -> None:
    model = cc.disentangled_transformer(3, 4, (1, 1))
    graph = circuits.circuit_graph(model)
    by_reader = {}
    for sender, reader in circuits.circuit_edges(graph):
        by_reader.setdefault(reader, []).append(sender)
    assert [by_reader[f"L0H0.{name}"] for name in "qkv"] == [["token", "position"]] * 3
    assert [by_reader[f"L1H0.{name}"] for name in "qkv"] == [["token", "position", "L0H0"]] * 3
    assert by_reader["logits"] == ["token", "position", "L0H0", "L1H0"]
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.has_path(graph, "token", "logits")
    finer = circuits.circuit_graph(model, "slot")
    assert ("L0H0.position", "L1H0.k") in finer.edges
    assert ("L1H0.L0H0.token", "logits") in finer.edges


def test_a_circuit_may_be_a_graph_a_list_or_a_mask() -> None:
    model, batch = case((1, 1))
    whole = circuits.circuit_model(model, batch)
    edges = [("token", "L0H0.v"), ("L0H0", "logits"), ("L1H0", "logits")]
    graph = whole.graph.edge_subgraph(edges)
    assert sorted(circuits.circuit_edges(graph)) == sorted(edges)
    costs = {whole.mean_cost(circuit) for circuit in (edges, graph, whole.mask(edges))}
    assert len(costs) == 1


@pytest.mark.parametrize("metric", cc.interventions.METRICS)
def test_every_metric_is_a_cost(metric: str) -> None:
    """The whole circuit is better than nothing by every metric, and metrics are what their names say.

    (A read-out of 2: one of 3 is so sure of the few matches among 8 positions that saying nothing has the lower loss.)
    """
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, readout_scale=2.0), task.sample(300)
    whole = circuits.circuit_model(model, batch, metric=metric, task=task)
    assert whole.mean_cost(whole.full) < whole.mean_cost(whole.empty)
    log_probs = cc.log_probs(model, batch.tokens).detach().double()
    best = batch.target_probs.argmax(dim=-1)
    others = (log_probs.sum(dim=-1) - log_probs[range(300), best]) / 2
    posterior = task.bayes_predictor(batch.tokens)
    expected = {
        "loss": oracles.cross_entropies(log_probs, batch.target_probs).mean(),
        "kl_to_model": torch.tensor(0.0),
        "kl_to_posterior": (posterior * (posterior.log() - log_probs)).sum(dim=-1).mean(),
        "logit_difference": -(log_probs[range(300), best] - others).mean(),
        "accuracy": -(log_probs.argmax(dim=-1) == best).double().mean(),
    }
    assert whole.mean_cost(whole.full) == pytest.approx(float(expected[metric]), abs=1e-5)


def test_bad_input_is_named() -> None:
    model, batch = case((1, 1))
    build, whole = circuits.circuit_model, circuits.circuit_model(model, batch)
    assert_refused(lambda: build(model, batch, counterfactual="noise"), "zero, mean, resample, permute", "'noise'")
    assert_refused(lambda: build(model, batch, counterfactual=batch.tokens[:2]), "one sequence for each", "[2, 5]")
    assert_refused(lambda: build(model, batch, granularity="neuron"), "head, slot", "'neuron'")
    assert_refused(lambda: build(model, batch[:1], counterfactual="resample"), "at least 2 sequences", "1")
    assert_refused(lambda: whole.mask([("token", "L0H1.q")]), "no node 'L0H1.q'", "token", "another model")
    assert_refused(lambda: whole.mask([("L1H0", "L0H0.q")]), "no edge L1H0 -> L0H0.q")
    assert_refused(lambda: whole.mask(torch.ones(3, dtype=torch.bool)), "each of 19 edges", "[3]")
    assert_refused(lambda: whole.costs(whole.full[None][:0]), "one circuit or more", "[0, 19]")
    other = circuits.circuit_graph(cc.disentangled_transformer(S, T, (2, 1)))
    assert_refused(lambda: whole.mask(other), "L0H1", "another model")


def test_hooks_are_refused_because_they_cannot_be_honoured() -> None:
    model, batch = case((1, 1))
    model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern)
    assert_refused(lambda: circuits.circuit_model(model, batch), "blocks.0.attn.hook_pattern", "reset_hooks()")
