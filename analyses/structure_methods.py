"""The methods that `structure_learning.py` compares: each takes one table of sequences and names edges.

Not a script. A method *proposes* one earlier position for each position (or, for trees and skeletons, its edges) and
*accepts* those proposals that pass its own test.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from algorithm_1 import FULL_ADAM, empty_model, first_stage, run_stage

import causal_circuits as cc

Edges = set[tuple[int, int]]
GRADIENT, LABELS, ATTENTION = "one gradient", "one gradient, labels", "trained attention"
INFORMATION, CHOW_LIU, PC = "pooled mutual information", "Chow-Liu", "PC"
METHODS = (GRADIENT, LABELS, ATTENTION, INFORMATION, CHOW_LIU, PC)
MISSING = (
    "PC is left out: causal-learn is not installed; pip install -c constraints.txt -e '.[structure]' brings it. "
    "Everything else runs."
)


@dataclass(frozen=True)
class Found:
    """What a method makes of the data: proposals, the graph of those it accepts, and its time."""

    proposed: Edges
    graph: nx.DiGraph
    seconds: float


@dataclass(frozen=True, eq=False)
class Resampled(cc.InContextTask):
    """A task whose batches are drawn, with replacement, from a given table of sequences."""

    data: cc.Batch | None = None

    def sample(self, n: int, seed: Any = 0, n_threads: int = 1) -> cc.Batch:
        """`n` rows of the table."""
        assert self.data is not None
        return self.data[torch.from_numpy(np.random.default_rng(seed).integers(len(self.data), size=n))]


def find_edges(
    method: str, task: cc.InContextTask, data: cc.Batch, *, level: float, steps: int, seed: int, pc: Callable | None
) -> Found:
    """Run one method on a table of sequences."""
    began = time.perf_counter()
    if method == GRADIENT:
        proposed, accepted = by_gradient(data, level)
    elif method == LABELS:
        proposed, accepted = by_gradient(with_labels(data, seed), level)
    elif method == ATTENTION:
        proposed, accepted = by_attention(task, data, level, steps, seed)
    elif method == INFORMATION:
        proposed, accepted = by_information(data.tokens[:, :-1], task.d_vocab, level)
    elif method == CHOW_LIU:
        proposed = set(cc.chow_liu_tree(cc.pooled_mutual_information(data.tokens[:, :-1], task.d_vocab)).edges)
        accepted = proposed
    else:
        proposed = accepted = pc(data.tokens[:, :-1].numpy(), level)
    graph = nx.DiGraph([(task.n_ctx - 1, task.n_ctx), *accepted])
    graph.add_nodes_from(range(task.n_ctx + 1))
    return Found(proposed, graph, time.perf_counter() - began)


def by_gradient(data: cc.Batch, level: float) -> tuple[Edges, Edges]:
    """What `recover_graph` makes of the table: every position's candidate, and the parents it is sure of."""
    found = cc.recover_graph(data.tokens, data.target_probs, level=level).positions
    proposed = {(p.candidate, p.position) for p in found if p.candidate is not None}
    return proposed, {(p.parent, p.position) for p in found if p.parent is not None}


def with_labels(data: cc.Batch, seed: int) -> cc.Batch:
    """The same sequences with one sampled next token each in place of its law."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(data.target_probs, 1, generator=generator)[:, 0]
    return cc.Batch(data.tokens, torch.nn.functional.one_hot(labels, data.target_probs.shape[1]).float())


def by_attention(task: cc.InContextTask, data: cc.Batch, level: float, steps: int, seed: int) -> tuple[Edges, Edges]:
    """The rows' maxima of layer 1's attention after stage 1 of Algorithm 1 on this table; roots told by information."""
    model, resampled = empty_model(FULL_ADAM, task), Resampled(task.graph, task.d_vocab, data=data)
    stage = first_stage(FULL_ADAM, task, steps)
    run_stage(model, resampled, stage, beta0=FULL_ADAM.beta0, batch_size=512, seed=seed)
    found = cc.extract_graph(model, batch=data, level=level)
    proposed = {(candidate.parent, candidate.child) for candidate in found.candidates}
    return proposed, set(found.edges) - {(task.n_ctx - 1, task.n_ctx)}


def by_information(tokens: torch.Tensor, d_vocab: int, level: float) -> tuple[Edges, Edges]:
    """The earlier position with the largest pooled mutual information; kept if the G-test rejects independence."""
    information = cc.pooled_mutual_information(tokens, d_vocab)
    proposed = row_maxima(information)
    degrees, twice_n = (d_vocab - 1) ** 2, 2 * len(tokens)
    tails = {
        (j, i): chi_squared_tail(twice_n * information[i, j], degrees)
        for i in range(len(information))
        for j in range(i)
    }
    return proposed, proposed & significant(tails, level)


def significant(p_values: dict[tuple[int, int], float], level: float) -> Edges:
    """The pairs whose p-value, Holm-adjusted over all pairs (maxima are picked from them), is below the level."""
    adjusted = cc.discovery.holm(list(p_values.values()))
    return {pair for pair, p in zip(p_values, adjusted, strict=True) if p < level}


def row_maxima(values: np.ndarray) -> Edges:
    """(j, i) for every position i > 0 and the earlier j with the largest entry of row i."""
    return {(int(values[child, :child].argmax()), child) for child in range(1, len(values))}


def chi_squared_tail(statistic: float, degrees: int) -> float:
    """P(chi-squared with an even number, or any number, of degrees > statistic), by the upper incomplete gamma."""
    x = torch.tensor(max(statistic, 0.0) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor(degrees / 2, dtype=torch.float64), x))


def load_pc() -> Callable[[np.ndarray, float], Edges] | None:
    """PC's skeleton by causal-learn, or None if it is not installed.

    In a forest any two positions that share no edge are independent given at most one other, so conditioning sets of
    one suffice. Edges point forward: the order of positions is known. Holm's correction has no place in PC, whose level
    is that of each test; the level asked for is divided by the number of pairs.
    """
    try:
        from causallearn.utils.cit import CIT
        from causallearn.utils.PCUtils.SkeletonDiscovery import skeleton_discovery
    except ImportError:
        return None

    def pc(tokens: np.ndarray, level: float) -> Edges:
        n_ctx = tokens.shape[1]
        n_pairs = n_ctx * (n_ctx - 1) / 2
        skeleton = skeleton_discovery(tokens, level / n_pairs, CIT(tokens, "chisq"), show_progress=False, max_k=1)
        linked = skeleton.G.graph != 0
        return {(j, i) for i in range(n_ctx) for j in range(i) if linked[i, j] or linked[j, i]}

    return pc
