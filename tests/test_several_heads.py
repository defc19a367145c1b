"""Reading heads: planted heads against the graph, swapped rows, roots and decoys; predictors that know some parents."""

import oracles
import pytest
import torch

import causal_circuits as cc

MIXED = [[], [], [0, 1], [0], [1, 2], [0, 2, 3], [3, 4], [], [2, 6], [5, 6], [4, 8]]


def planted(task: cc.InContextTask, rows: dict[int, tuple[int, ...]]) -> cc.models.HookedTransformer:
    """The planted circuit with some rows of layer 0 put elsewhere: row -> what each head attends to."""
    model = cc.plant_circuit(task.graph, task.d_vocab, n_heads=(max(task.in_degrees), 1))
    position = cc.models.slots(model)["position"].slice
    with torch.no_grad():
        for row, keys in rows.items():
            for head, key in enumerate(keys):
                model.blocks[0].attn.W_Q[head, position, position][row] = 20.0 * torch.eye(task.n_ctx)[key]
    return model


@pytest.mark.parametrize(
    ("rows", "inferred"),
    [
        ({4: (3, 2), 1: (0, 0)}, {(5, 7)}),  # a row may be swapped, and a root's attend anywhere
        ({5: (0, 1)}, {(3, 5), (4, 5), (5, 7)}),  # a row that attends elsewhere carries nothing
        ({7: (6, 6)}, {(5, 7), (7, 8)}),  # the last row has the target's parents to copy
    ],
)
def test_edges_are_what_heads_attend_to_and_the_sequences_confirm(rows, inferred) -> None:
    task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    found = cc.extract_graph(planted(task, rows), task, n_sequences=8000)
    true = set(task.graph.edges)
    assert set(found.edges) == true - inferred
    assert set(found.inferred) == inferred


def test_rows_of_another_matrix_are_no_edges_and_attention_alone_cannot_tell() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    found = cc.extract_graph(planted(task, {7: (2, 3, 7), 3: (1, 2, 3)}), task, n_sequences=8000)
    assert set(found.edges) <= {(p, c) for p, c in task.graph.edges if len([*task.graph.predecessors(c)]) == 2}
    assert {(2, 7), (3, 7)} <= set(found.from_attention.edges)


def test_subset_predictors_equal_plain_counting() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    tokens = task.sample(16, seed=1).tokens
    for which in ((), (0,), (1,), (0, 1)):
        expected = [oracles.subset_counts(MIXED, 3, row, which, 0.4) for row in tokens.tolist()]
        torch.testing.assert_close(cc.tasks.subset_predictor(task, tokens, which, 0.4), torch.tensor(expected).double())


def test_the_reduced_model_with_two_heads_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    a1, a2 = torch.randn(2, 5, 5, generator=generator).double(), torch.randn(2, 3, 3, generator=generator).double()
    model = cc.reduced_transformer(3, 5, (2, 1), dtype=torch.float64)
    with torch.no_grad():
        for head in range(2):
            model.blocks[0].attn.W_Q[head, 3:8, :5] = a1[head]
            cc.models.match_blocks(model, head)[0].copy_(a2[head])
    tokens = torch.randint(3, (8, 5), generator=generator)
    expected = [oracles.reduced_forward_of_heads(a1, a2, row, 3) for row in tokens]
    torch.testing.assert_close(cc.models.log_probs(model, tokens).exp() - 1e-9, torch.stack(expected))


def planted_distance(n_ctx: int) -> float:
    """Mean distance, in total variation, of what the planted heads attend to from the edge posterior, for a 3-gram."""
    graph = cc.ngram_graph(n_ctx, 2)
    task = cc.InContextTask(graph, d_vocab=2, alpha=1.0)
    test = task.sample(512, seed=0)
    model = cc.plant_circuit(graph, 2, readout_scale=1.0)
    # with this read-out the share attended to each token
    attended = cc.models.logits(model, test.tokens).detach().double()
    return float((attended - task.bayes_predictor(test.tokens)).abs().sum(dim=1).mean() / 2)


def test_planted_heads_approach_the_edge_posterior_as_the_context_grows() -> None:
    distance = [planted_distance(n_ctx) for n_ctx in (16, 64, 192)]
    assert distance[0] > 2 * distance[1] > 4 * distance[2]
