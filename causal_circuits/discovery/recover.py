"""Recover a causal graph from sequences of your own: one pass over them, no model, no training.

Every position gets a verdict: "child" (with its parent), "root", or "undecided" where the data cannot tell, or where
they contradict a forest: a position with more than one parent, say. What is assumed: each sequence has a transition
matrix of its own (or all share one), positions form a forest, tokens follow its stationary law, and the last token is a
query drawn independently of the others. Where the data contradict that, the positions concerned stay undecided and a
reason or a warning says why.

With `max_parents` above 1 the target and every position may have that many, and no position is a query: see `parents`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import Count, check_arguments
from causal_circuits.discovery.assumptions import unusable_positions
from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.discovery.parents import find_parents
from causal_circuits.discovery.significance import EdgeTest, edge_tests
from causal_circuits.discovery.user_data import UserData, read_data
from causal_circuits.discovery.verdicts import MIN_SEQUENCES, Position, judge_position
from causal_circuits.display import Frame, frame, short_list, table_html
from causal_circuits.graphs import latent_edges
from causal_circuits.tasks.batch import Batch

MOST_MATCHES = 2**24  # of parents and a child, each of some 50 bytes
SHOWN = ("position", "verdict", "candidate", "rival", "weight", "p_value", "p_root", "sequences_needed", "reason")
_SEVERAL = 3  # edges, from which on more may be said of all of them


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
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
        level: family-wise error of the edges, of the roots, and of contradicting a true forest.
        warnings: what in the data contradicts the assumptions.
        target_parents: of a forest the query; None if `max_parents` is above 1 and they could not be told.

    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> found, cc.compare_graphs(task.graph, found.graph).exact
    (RecoveredGraph(4 edges, 0 undecided; 3,000 sequences), True)
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
    target_parents: tuple[int, ...] | None

    @property
    def found_parents(self) -> list[int | None] | list[list[int] | None]:
        """The parent of each position before the query, None where none was found; for `graph_from_parents`.

        Where several were allowed and the target's parent is no query: a list for each position of the context, empty
        for a root, None where it is undecided.
        """
        if len(self.positions) < len(self.weights):
            return [position.parent for position in self.positions]
        return [None if p.verdict == "undecided" else list(p.parents) for p in self.positions]

    @property
    def undecided(self) -> tuple[int, ...]:
        """Positions of which the data cannot tell whether they have a parent, or which."""
        return tuple(p.position for p in self.positions if p.verdict == "undecided")

    @property
    def conclusive(self) -> bool:
        """Whether every position is decided."""
        return not self.undecided

    def to_frame(self) -> Frame:
        """A row for each position, with the numbers and words that decide, as in `Position`."""
        rows = [{name: getattr(position, name) for name in SHOWN} for position in self.positions]
        return frame(rows, columns=list(SHOWN))

    def __repr__(self) -> str:
        edges, open_ = len(latent_edges(self.graph)), self.undecided
        named = f" ({short_list(open_)})" if open_ else ""
        doubts = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"RecoveredGraph({edges} edges, {len(open_)} undecided{named}; {self.n_sequences:,} sequences{doubts})"

    def _repr_html_(self) -> str:
        rows = self.to_frame().replace(float("inf"), None).to_dict("records")
        return table_html(rows, "; ".join([repr(self), *self.warnings]))


@check_arguments
def recover_graph(
    tokens: Int[Tensor, "sequence n_ctx"] | Batch,
    targets: Float[Tensor, "sequence d_vocab"] | Int[Tensor, " sequence"] | None = None,
    *,
    d_vocab: int | None = None,
    level: float = 0.05,
    max_parents: Count = 1,
) -> RecoveredGraph:
    """The causal graph behind a set of sequences, edge by edge with a p-value, from one pass over them.

    Parents stand before their children: of positions in another order edges come out reversed, without a warning. A
    root is a position whose row lies significantly below half of an edge's score, and whose independence of every
    earlier position no test contradicts: dependence on several positions by a little each may be missed.
    With targets that are laws a child of several parents stays undecided as soon as its edge falls significantly short.
    With labels an edge's score is known from the other edges found only: a further parent may be overlooked if all
    children are mixed alike, or there is but one.

    With `max_parents` above 1 the target's parents are found too, and the parents of every position that is drawn
    from the target's transition matrix, that is of the same number of them: no other matrix shows in the target.
    Such an edge is identifiable unless two positions can change places in all these choices of parents, the
    target's included, without a match changing (as where all have the same parents): then the wrong one may be
    named. Tokens are taken to be uniform over sequences, those of roots independent of one another, and to depend
    on the target's law by matches of parents alone: a position off the first is undecided, two roots that agree too
    often, or the last contradicted anywhere, leave all undecided. A root is a position for which every choice of
    parents is rejected and that agrees with no other one where two others agree; the only child of its number of
    parents has the law of a root and counts as one. Memory grows with n_ctx^(max_parents + 1), time with n_ctx^(2
    max_parents + 1). If the last position turns out to be a query (laws decide every position of a forest, or it is
    the target's only parent and has none itself), the result is that of max_parents=1.

    Args:
        tokens: integers [sequences, n_ctx], the query last; or a `Batch`, which has its targets.
        targets: what follows the query: probabilities [sequences, d_vocab] (the law that the query names), or
            labels [sequences], one token drawn from it.
        d_vocab: number of tokens; by default the targets' width, or for labels the largest token plus one.
        level: the chance of any false edge at most (Holm over all pairs of positions); the same for roots, and for
            contradicting a true forest anywhere.
        max_parents: how many parents the target and each position may have.

    Raises:
        ValueError: arrays that are empty, ragged or do not fit each other, tokens outside the vocabulary, targets
            that are no probabilities.

    >>> batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.3).sample(5000, seed=0)
    >>> recover_graph(batch).found_parents
    [None, 0, 1, 2, 3]
    >>> recover_graph(batch[:40]).undecided       # too few: it says so
    (1, 2, 3, 4)
    >>> found = recover_graph(cc.InContextTask(cc.ngram_graph(9, 2), d_vocab=3).sample(10_000), max_parents=2)
    >>> found.target_parents, found.found_parents[:5]
    ((7, 8), [[], [], [0, 1], [1, 2], [2, 3]])
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1): got {level}; 0.05 is usual")
    data = read_data(tokens, targets, d_vocab)
    if max_parents == 1:
        return _forest(data, level)
    _check_size(data.n_ctx, max_parents)
    forest = _forest(data, level)
    if data.probabilities and forest.conclusive and not forest.warnings and any(p.parents for p in forest.positions):
        return forest
    several = _several_parents(data, max_parents, level)
    is_query = several.target_parents == (data.n_ctx - 1,) and several.positions[-1].verdict != "child"
    return forest if is_query else several


def _forest(data: UserData, level: float) -> RecoveredGraph:
    """The last position a query, every other a root or the child of one parent."""
    why_not, warnings = unusable_positions(data)
    usable = np.array([position not in why_not for position in range(data.n_ctx - 1)])
    hidden = ~usable & ~data.constant[:-1]  # a constant is outside the forest
    scores = EdgeScores(data.tokens, data.targets, data.n_independent)
    test = edge_tests(scores, usable, hidden, level, data.probabilities)
    positions = tuple(judge_position(position, test, why_not) for position in range(data.n_ctx - 1))
    return RecoveredGraph(
        graph=_graph(data.n_ctx, positions, (data.n_ctx - 1,)),
        positions=positions,
        weights=torch.from_numpy(np.pad(test.weight, (0, 1))),
        p_values=torch.from_numpy(np.pad(test.p_value, (0, 1), constant_values=1.0)),
        n_sequences=len(data.tokens),
        n_independent=data.n_independent,
        sequences_needed=max(test.edge_sequences_needed, MIN_SEQUENCES),
        level=level,
        warnings=(*warnings, *_doubts_about_targets(test, data)),
        target_parents=(data.n_ctx - 1,),
    )


def _check_size(n_ctx: int, max_parents: int) -> None:
    numbers = n_ctx * max(comb(n_ctx, k) for k in range(min(max_parents, n_ctx) + 1))
    if numbers > MOST_MATCHES:
        raise ValueError(
            f"max_parents={max_parents} at n_ctx {n_ctx} makes {numbers:,} matches, more than {MOST_MATCHES:,}: allow "
            "fewer parents, or take fewer positions"
        )


def _several_parents(data: UserData, max_parents: int, level: float) -> RecoveredGraph:
    """The target and every position with as many parents as are allowed."""
    target_parents, positions, warnings = find_parents(data, max_parents, level)
    weights = torch.zeros(data.n_ctx, data.n_ctx, dtype=torch.float64)
    p_values = torch.ones_like(weights)
    for p in positions:
        if isinstance(p.candidate, tuple):
            weights[p.position, list(p.candidate)] = p.weight
            p_values[p.position, list(p.candidate)] = p.p_value
    needed = [p.sequences_needed for p in positions if p.verdict == "child"]
    return RecoveredGraph(
        graph=_graph(data.n_ctx, positions, target_parents or ()),
        positions=positions,
        weights=weights,
        p_values=p_values,
        n_sequences=len(data.tokens),
        n_independent=data.n_independent,
        sequences_needed=max(float(np.median(needed)), MIN_SEQUENCES) if needed else float("inf"),
        level=level,
        warnings=warnings,
        target_parents=target_parents,
    )


def _doubts_about_targets(test: EdgeTest, data: UserData) -> list[str]:
    """What contradicts, in most of the edges found or in every pair, that targets are the laws of the tokens."""
    if data.n_independent < MIN_SEQUENCES:
        return []
    doubts, found = [], test.p_value.min(axis=1, initial=1.0) < test.level
    short = found & (test.forest.p_one_parent < test.level)
    if short.sum() >= _SEVERAL and short.sum() > found.sum() / 2 and test.laws:
        doubts.append(
            f"{short.sum()} of {found.sum()} edges found fall short of an edge's score: these positions have more than "
            "one parent, or the targets are no laws but estimates (then give the tokens that followed, as labels)"
        )
    if not test.forest.fits_targets:
        doubts.append(
            "no position without an edge is independent of any earlier one: all depend on each other, or the targets "
            "are not the laws of these tokens"
        )
    return doubts


def _graph(n_ctx: int, positions: Sequence[Position], target_parents: Sequence[int]) -> nx.DiGraph:
    """The graph of the children found; an undecided position has no parent in it, and need not be a root."""
    graph = nx.DiGraph(target=n_ctx)
    graph.add_nodes_from(range(n_ctx + 1))
    for p in positions:
        facts = {"weight": p.weight, "p_value": p.p_value, "sequences_needed": p.sequences_needed}
        graph.add_edges_from(((parent, p.position) for parent in p.parents), **facts)
    graph.add_edges_from((t, n_ctx) for t in target_parents)
    return graph
