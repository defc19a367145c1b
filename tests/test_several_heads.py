"""What judging heads must get right: planted heads, swapped rows, a last row that looks elsewhere."""

import itertools

import oracles
import pytest
import torch

import causal_circuits as cc
from causal_circuits.discovery.several_heads import judge_heads

MIXED = [[], [], [0, 1], [0], [1, 2], [0, 2, 3], [3, 4], [], [2, 6], [5, 6], [4, 8]]


def planted_attention(task: cc.InContextTask) -> torch.Tensor:
    """[head, query, key]: head h on parent number h where a row has as many as the target; uniform elsewhere."""
    n_ctx, target = task.n_ctx, task.target_parents
    attention = torch.ones(len(target), n_ctx, n_ctx).tril()
    attention /= attention.sum(dim=-1, keepdim=True)
    for row in [*range(n_ctx - 1), n_ctx]:
        above = cc.graphs.parents_of(task.graph, row)
        for head, parent in enumerate(above if len(above) == len(target) else ()):
            attention[head, min(row, n_ctx - 1)] = 0.0
            attention[head, min(row, n_ctx - 1), parent] = 1.0
    return attention


def judged(task: cc.InContextTask, attention: torch.Tensor) -> tuple[set[tuple[int, int]], list]:
    """The accepted edges and the heads' reports."""
    batch = task.sample(8192, seed=3)
    found, reports, _ = judge_heads(attention, batch.tokens, batch.target_probs, range(len(attention)), 0.5, 0.01)
    return {(c.parent, c.child) for c in found if c.accepted}, reports


def trigram() -> cc.InContextTask:
    return cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=4)


def test_swapped_rows_keep_their_edges() -> None:
    task = trigram()
    straight = planted_attention(task)
    swapped = straight.clone()
    swapped[:, [4, 7]] = straight.flip(0)[:, [4, 7]]
    edges, _ = judged(task, straight)
    assert judged(task, swapped)[0] == edges
    assert {(2, 4), (3, 4), (5, 7), (6, 7)} <= edges <= set(task.graph.edges)


def test_a_head_stands_for_what_its_rows_go_with_when_its_last_row_looks_elsewhere() -> None:
    task = trigram()
    attention = planted_attention(task)
    everything, _ = judged(task, attention)
    attention[1, -1] = 0.0
    attention[1, -1, 6] = 1.0
    edges, reports = judged(task, attention)
    assert reports[1].last_key == 11
    assert reports[1].last_weight == 0
    assert edges == everything - {(11, 12)}


def test_rows_of_roots_and_of_other_kernels_are_no_edges_wherever_they_look() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=5)
    attention = planted_attention(task)
    others = [row for row in range(1, task.n_ctx - 1) if len(MIXED[row]) != 2]
    for row, key in itertools.product(others, range(3)):
        hard = attention.clone()
        hard[:, row] = 0.0
        hard[:, row, min(key, row - 1)] = 1.0
        assert judged(task, hard)[0] <= set(task.graph.edges)


PAPER = [[], [], *([(i - 1) // 2, i - 1] for i in range(2, 33))]


@pytest.mark.parametrize(
    ("row", "keys", "lost"),
    [
        (16, {7: 1.0}, (31,)),  # x_7 = x_15 and x_7 = x_31 single out the sequences of both parents, 7 and 15
        (-1, {31: 0.55, 30: 0.45}, ()),  # half free, it carries the parents of the last position too
        (20, {12: 1.0}, (20, 31)),  # a wrong key rejects the row it is in and no other
    ],
)
def test_a_row_that_looks_elsewhere_loses_what_no_equal_event_settles(row, keys, lost) -> None:
    task = cc.InContextTask(cc.graph_from_parents(PAPER), d_vocab=5)
    attention = planted_attention(task)
    attention[1, row] = 0.0
    for key, weight in keys.items():
        attention[1, row, key] = weight
    assert judged(task, attention)[0] == {(p, c) for p, c in task.graph.edges if c not in lost}


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
    attended = (
        cc.models.logits(model, test.tokens).detach().double()
    )  # with this read-out: the share attended to each token
    return float((attended - task.bayes_predictor(test.tokens)).abs().sum(dim=1).mean() / 2)


def test_planted_heads_approach_the_edge_posterior_as_the_context_grows() -> None:
    distance = [planted_distance(n_ctx) for n_ctx in (16, 64, 192)]
    assert distance[0] > 2 * distance[1] > 4 * distance[2]
