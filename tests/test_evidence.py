"""What decided about an edge: attention alone, or information; a graph from each, and a word on every candidate."""

import pytest
import torch

import causal_circuits as cc

FOREST = cc.graph_from_parents([None, 0, 0, None, 3, None, 4])
TASK = cc.InContextTask(FOREST, d_vocab=3)


def attending_roots(rows: dict[int, int], task: cc.InContextTask = TASK) -> cc.models.HookedTransformer:
    """The planted circuit in which the rows of some roots attend to an earlier position as clearly as children do."""
    model = cc.plant_circuit(task.graph, d_vocab=task.d_vocab)
    for row, key in rows.items():
        # roots attend to themselves with 20
        model.blocks[0].attn.W_Q.data[0, task.d_vocab + row, task.d_vocab + key] = 40.0
    return model


@pytest.mark.parametrize("rows", [{}, {3: 1}, {3: 0, 5: 2}])
def test_attention_alone_has_the_rows_of_roots_as_false_edges_and_information_takes_them_out(rows) -> None:
    found = cc.extract_graph(attending_roots(rows), TASK, n_sequences=4000)
    alone = cc.compare_graphs(FOREST, found.from_attention)
    assert (alone.missing, set(alone.false)) == ((), {(key, row) for row, key in rows.items()})
    assert cc.compare_graphs(FOREST, found).exact
    assert "4,000 sequences" in found.evidence
    assert "without the model" in found.evidence
    decided = {c.child: (c.accepted, c.decided_by) for c in found.candidates}
    for child in range(1, 7):
        is_root = FOREST.in_degree(child) == 0
        by = "attention" if is_root and child not in rows else "information"
        assert decided[child] == (not is_root, by)
    assert {facts["decided_by"] for _, child, facts in found.edges(data=True) if child < 7} == {"information"}


def test_without_sequences_attention_alone_decides() -> None:
    found = cc.extract_graph(attending_roots({3: 1}))
    assert set(found.edges) == set(found.from_attention.edges)
    assert (1, 3) in found.edges
    assert {c.decided_by for c in found.candidates} == {"attention"}
    assert found.evidence.startswith("attention alone")
    assert not found.roots_tested


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_graph_by_attention_is_read_off_the_pattern_row_by_row(seed: int) -> None:
    task = cc.InContextTask(cc.chain_graph(10), d_vocab=4)
    model = cc.disentangled_transformer(4, 10, (2, 1), init_scale=0.1, seed=seed)
    batch = task.sample(500, seed=seed)
    model.blocks[0].attn.W_Q *= 30  # from all but uniform attention to rows of which some are clear
    attention = cc.mean_attention(model, batch.tokens)[0]
    for least in (0.2, 0.5, 0.9):
        expected = {(task.n_ctx - 1, task.n_ctx)}
        for pattern in attention.tolist():
            for child in range(1, task.n_ctx - 1):
                row = pattern[child]
                parent = max(range(child), key=row.__getitem__)
                if row[parent] >= least and all(row[parent] > row[k] for k in range(child + 1) if k != parent):
                    expected.add((parent, child))
        found = cc.extract_graph(model, batch=batch, min_weight=least)
        assert set(found.from_attention.edges) == expected
        assert set(found.edges) <= expected
        for candidate in found.candidates:
            if "below" in candidate.reason:
                assert candidate.weight < least
            if "not its row's largest" in candidate.reason:
                assert candidate.weight >= least
                assert candidate.margin <= 0


def test_two_parents_attention_alone_counts_a_row_that_attends_without_information() -> None:
    graph = cc.graph_from_parents([[], [], [0, 1], [1, 2], [], [2, 3], [3, 5], [5, 6]])
    task = cc.InContextTask(graph, d_vocab=2)
    model = cc.plant_circuit(graph, d_vocab=2)
    model.blocks[0].attn.W_Q.data[:2, 2 + 4, 2 + 1] = 40.0  # position 4 has no parent
    found = cc.extract_graph(model, task, n_sequences=8000)
    assert cc.compare_graphs(graph, found).false == (), found.candidates
    assert cc.compare_graphs(graph, found.from_attention).false == ((1, 4),)
    assert {c.decided_by for c in found.candidates if c.child == 4} == {"information"}


@pytest.mark.parametrize("task", [TASK, cc.InContextTask(cc.ngram_graph(7, order=2), d_vocab=3)])
def test_an_unused_head_proposes_edges_and_none_of_them_is_accepted(task: cc.InContextTask) -> None:
    model = cc.plant_circuit(task.graph, d_vocab=3)
    model.unembed.W_U.data.zero_()
    found = cc.extract_graph(model, task, n_sequences=1000)
    assert len(found.from_attention.edges) >= 5
    assert {(c.accepted, c.decided_by) for c in found.candidates} == {(False, "unused head")}
    assert not cc.latent_edges(found)


@pytest.mark.parametrize("seed", range(3))
def test_where_no_proposal_is_an_edge_none_is_the_measure_of_the_others(seed: int) -> None:
    task = cc.InContextTask(cc.graph_from_parents([None, None, None, 0]), d_vocab=3, alpha=0.1)
    model = cc.plant_circuit(cc.chain_graph(5), d_vocab=3)  # attends to the token before, which is no parent
    assert not cc.latent_edges(cc.extract_graph(model, task, seed=seed))
