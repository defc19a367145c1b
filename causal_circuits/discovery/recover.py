"""Recover a causal graph from sequences of your own: one gradient evaluation, no model, no training.

Every position gets a verdict: "child" (with its parent), "root", or "undecided" where the data cannot tell. What is
assumed: each sequence has a kernel of its own (or all share one), positions form a forest, tokens follow the
kernel's stationary law, and the last token is a query drawn independently of the others. Where the data contradict
that, the positions concerned stay undecided and a warning says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.discovery.significance import EdgeTest, edge_tests
from causal_circuits.discovery.user_data import UserData, read_data, unusable_positions
from causal_circuits.graphs import graph_from_parents

Array = Tensor | np.ndarray | Sequence
Verdict = Literal["child", "root", "undecided"]

MIN_SEQUENCES = 30  # independent ones, below which nothing is decided: no tail bound holds with an estimated variance
MIN_SHARE = 0.5  # of an edge's score that an edge must have; every edge of a task has the same, an uncle's is less


@dataclass(frozen=True)
class Position:
    """The verdict on one position.

    Attributes:
        position: 0 .. n_ctx - 2 (the query is given).
        verdict: "child", "root" or "undecided".
        parent: of a child, else None.
        candidate: the earlier position with the largest score, decided or not; None at the first position.
        rival: the position whose score comes closest to the candidate's.
        weight: the candidate's score on a scale where 0 is an independent pair and 1 an edge; NaN if unknown.
        p_value: of "the candidate is not the parent", Holm-corrected over all pairs of positions.
        p_root: of "this position has a parent", Holm-corrected over positions; NaN if it cannot be tested.
        sequences_needed: at which an edge here is or would be certain at the level; inf if none would do.
        reason: why, in words.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> child = found.positions[1]
    >>> child.verdict, child.parent, child.p_value < 0.01
    ('child', 0, True)
    """

    position: int
    verdict: Verdict
    parent: int | None
    candidate: int | None
    rival: int | None
    weight: float
    p_value: float
    p_root: float
    sequences_needed: float
    reason: str


@dataclass(frozen=True)
class RecoveredGraph:
    """A causal graph read from sequences, with what is known of every position.

    Attributes:
        graph: over n_ctx positions and the target; edges carry "weight", "p_value" and "sequences_needed".
        positions: the verdict on each position before the query.
        weights: float64 [n_ctx, n_ctx]; the score of every pair, row child, column parent, on a scale where 0 is an
            independent pair and 1 an edge; NaN if that scale is unknown, 0 where nothing is tested.
        p_values: the same shape; of "not the parent", Holm-corrected over all pairs; 1 where nothing is tested.
        n_sequences: given.
        n_independent: how many of them count as independent (copies do not).
        sequences_needed: about how many would make a typical edge certain; inf if the targets do not say.
        level: family-wise error of the edges, and of the roots.
        warnings: what in the data contradicts the assumptions.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> cc.compare_graphs(task.graph, found.graph).exact, found.n_sequences
    (True, 3000)
    """

    graph: nx.DiGraph
    positions: tuple[Position, ...]
    weights: Float[Tensor, "n_ctx n_ctx"]
    p_values: Float[Tensor, "n_ctx n_ctx"]
    n_sequences: int
    n_independent: int
    sequences_needed: float
    level: float
    warnings: tuple[str, ...]

    @property
    def found_parents(self) -> list[int | None]:
        """The parent of each position before the query, None where none was found; for `graph_from_parents`."""
        return [position.parent for position in self.positions]

    @property
    def undecided(self) -> tuple[int, ...]:
        """Positions of which the data cannot tell whether they have a parent, or which."""
        return tuple(p.position for p in self.positions if p.verdict == "undecided")

    @property
    def conclusive(self) -> bool:
        """Whether every position is decided."""
        return not self.undecided


def recover_graph(
    tokens: Array, targets: Array, *, d_vocab: int | None = None, level: float = 0.05, min_share: float = MIN_SHARE
) -> RecoveredGraph:
    """The causal graph behind a set of sequences, edge by edge with a p-value, from one pass over them.

    Args:
        tokens: integers [sequences, n_ctx], the query last.
        targets: what follows the query: probabilities [sequences, d_vocab] (the kernel's row that the query names), or
            labels [sequences], one token drawn from it.
        d_vocab: number of tokens; by default the targets' width, or for labels the largest token plus one.
        level: the chance of any false edge at most (Holm over all pairs of positions); the same for roots.
        min_share: of the score of an edge that a significant entry must reach to be called one.

    Raises:
        ValueError: arrays that are empty, ragged or do not fit each other, tokens outside the vocabulary, targets
            that are no probabilities.

    >>> from causal_circuits import InContextTask, chain_graph
    >>> batch = InContextTask(chain_graph(6), d_vocab=3, alpha=0.3).sample(5000, seed=0)
    >>> recover_graph(batch.tokens, batch.target_probs).found_parents
    [None, 0, 1, 2, 3]
    >>> recover_graph(batch.tokens[:40], batch.target_probs[:40]).undecided       # too few: it says so
    (1, 2, 3, 4)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1): got {level}; 0.05 is usual")
    if not 0 <= min_share <= 1:
        raise ValueError(f"min_share must lie in [0, 1]: got {min_share}; {MIN_SHARE} is the default")
    data = read_data(tokens, targets, d_vocab)
    why_not, warnings = unusable_positions(data)
    scores = EdgeScores(data.tokens, data.targets, data.n_independent)
    usable = np.array([position not in why_not for position in range(data.n_ctx - 1)])
    test = edge_tests(scores, usable, level, data.probabilities)
    positions = tuple(_verdict(position, test, data, why_not, level, min_share) for position in range(data.n_ctx - 1))
    return RecoveredGraph(
        graph=_graph(positions, data),
        positions=positions,
        weights=torch.from_numpy(np.pad(test.weight, (0, 1))),
        p_values=torch.from_numpy(np.pad(test.p_value, (0, 1), constant_values=1.0)),
        n_sequences=len(data.tokens),
        n_independent=data.n_independent,
        sequences_needed=max(test.edge_sequences_needed, MIN_SEQUENCES),
        level=level,
        warnings=tuple(warnings),
    )


def _verdict(
    i: int, test: EdgeTest, data: UserData, why_not: dict[int, str], level: float, min_share: float
) -> Position:
    """What the tests say of position i."""
    best, needed, p_root = int(test.best[i]), float(test.sequences_needed[i]), float(test.p_root[i])
    share = float(test.weight[i, best]) if best >= 0 else float("nan")
    p_value = float(test.p_value[i, best]) if best >= 0 else 1.0
    enough = data.n_independent >= MIN_SEQUENCES
    verdict: Verdict = "undecided"
    hidden = [j for j in why_not if j < i and not data.constant[j]]  # a constant is outside the forest
    if i in why_not:
        reason = why_not[i]
    elif best < 0 and hidden:
        reason = f"position {hidden[0]}, which nothing can be said of, may be its parent"
    elif best < 0:
        verdict, reason = "root", "no earlier position to be a parent"
    elif not enough:
        reason = f"{data.n_independent} independent sequences cannot support a conclusion: {MIN_SEQUENCES} is the least"
    elif p_value < level and not share < min_share:
        verdict, reason = "child", f"parent {best}: p = {p_value:.2g}, {share:.0%} of an edge's score"
    elif p_value < level:
        reason = f"position {best} stands out (p = {p_value:.2g}) with only {share:.0%} of an edge's score"
    elif p_root < level and hidden:
        reason = f"a root (p = {p_root:.2g}) unless position {hidden[0]}, which nothing can be said of, is its parent"
    elif p_root < level:
        verdict, reason = "root", f"no earlier position has the score of an edge (p = {p_root:.2g})"
    else:
        if not (share >= MIN_SHARE and np.isfinite(needed)):  # an edge would be found, or excluded, with so many
            needed = test.edge_sequences_needed
        about = f"about {needed:,.0f} sequences are needed" if np.isfinite(needed) else "how many would do is not known"
        reason = f"cannot tell from {data.n_independent:,} sequences: {about}"
    return Position(
        position=i,
        verdict=verdict,
        parent=best if verdict == "child" else None,
        candidate=best if best >= 0 else None,
        rival=int(test.rival[i]) if test.rival[i] >= 0 else None,
        weight=share,
        p_value=p_value,
        p_root=p_root,
        sequences_needed=needed,
        reason=reason,
    )


def _graph(positions: Sequence[Position], data: UserData) -> nx.DiGraph:
    """The graph of the children found; `graph.graph["undecided"]` lists the positions that are no proven roots."""
    parents = [position.parent for position in positions]
    graph = graph_from_parents(parents) if parents else nx.DiGraph([(0, 1)])
    graph.graph["undecided"] = tuple(p.position for p in positions if p.verdict == "undecided")
    for p in positions:
        if p.parent is not None:
            facts = {"weight": p.weight, "p_value": p.p_value, "sequences_needed": p.sequences_needed}
            graph.edges[p.parent, p.position].update(facts)
    return graph
