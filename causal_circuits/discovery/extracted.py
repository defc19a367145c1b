"""A graph read out of a model, with the evidence that it rests on: candidates, heads, edges that no head attends to."""

from dataclasses import dataclass
from typing import Literal

import networkx as nx

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Frame, Result, frame, table_html

DecidedBy = Literal["attention", "information", "unused head"]


@check_arguments
@dataclass(frozen=True)
class CandidateEdge:
    """One proposal of the attention, and what became of it.

    Attributes:
        parent, child: positions (child n_ctx is the target).
        head: of layer 0.
        weight: attention from child to parent, averaged over sequences.
        margin: weight minus the row's next largest entry.
        information: the estimated g at this entry; NaN where it was not estimated.
        information_share: information divided by the largest among all candidates; with several parents, how much of
            a full match the row's parents have (`recover_graph`).
        p_value: one-sided, against "no information"; Holm-corrected over candidates. With several parents that of
            `recover_graph`.
        accepted: whether it is an edge of the extracted graph.
        reason: why, in words.
        decided_by: the evidence that decided. "attention": the model's own, because the entry is below `min_weight` or
            not its row's largest, or because there were no sequences to test for information. "information": that of
            the sequences and their targets, computed without the model; an accepted edge passed this test after
            attention proposed it. "unused head": no prediction depends on what its head attends to.

    >>> edge = cc.extract_graph(model, task, n_sequences=2000).candidates[0]
    >>> edge.parent, edge.child, edge.accepted, round(edge.weight, 3), edge.decided_by
    (0, 1, True, 1.0, 'information')
    """

    parent: int
    child: int
    head: int
    weight: float
    margin: float
    information: float
    information_share: float
    p_value: float
    accepted: bool
    reason: str
    decided_by: DecidedBy


@check_arguments
@dataclass(frozen=True, repr=False)
class HeadReport(Result):
    """What one head of layer 0 carries.

    Attributes:
        head: of layer 0.
        last_key: the position that its last row attends to most.
        last_weight: the last row's attention to it.
        edges: (parent, child) of every edge it carries; child n_ctx is the target.
        role: in words; "carries nothing" if it has no edge.

    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> reports = cc.extract_graph(model, task, n_sequences=4000).heads
    >>> [(report.head, report.last_key) for report in reports]
    [(0, 6), (1, 7)]
    """

    head: int
    last_key: int
    last_weight: float
    edges: tuple[tuple[int, int], ...]
    role: str


@check_arguments
class ExtractedGraph(nx.DiGraph):  # type: ignore[misc]  # to mypy networkx is Any
    """What `extract_graph` returns: a networkx.DiGraph of numbers and text, its evidence in fields of its own.

    It can be written as GraphML, GEXF or node-link JSON, with the numbers on its edges and without the fields. Copies
    and pickles have the fields; a part of it, or the graph with other nodes, has not.

    Attributes:
        candidates: every `CandidateEdge`, the rejected ones with their reason and the evidence that decided.
        from_attention: the graph that attention alone gives: of every row and head the largest entry, if it reaches
            `min_weight`. It holds the rows of roots that attend somewhere, which only information tells from edges.
        heads: what each head carries (`HeadReport`), of a task without a query.
        inferred: (parent, child) of the edges that the sequences show and no head attends to, of a task without a
            query; they are no part of the graph.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> found = cc.extract_graph(model, task, n_sequences=2000)
    >>> found.evidence
    'attention, and information in 2,000 sequences (computed without the model)'
    >>> cc.compare_graphs(task.graph, found.from_attention).exact, found.carriers(0, 1)
    (True, (0,))
    """

    candidates: tuple[CandidateEdge, ...]
    from_attention: nx.DiGraph
    heads: tuple[HeadReport, ...]
    inferred: tuple[tuple[int, int], ...]
    attached: tuple[str, ...]

    @property
    def roots_tested(self) -> bool:
        """Whether sequences told roots from children; if not, a warning belongs with any figure made of it."""
        return bool(self.graph["roots_tested"])

    @property
    def evidence(self) -> str:
        """What decided, in words: attention alone, or also the information in how many sequences."""
        return str(self.graph["evidence"])

    def __repr__(self) -> str:
        return f"ExtractedGraph({self.number_of_edges()} edges over {len(self)} positions)"

    def to_frame(self) -> Frame:
        """A row a candidate edge: what was measured, whether it was taken, and why."""
        return frame([vars(candidate) for candidate in self.candidates])

    def _repr_html_(self) -> str:
        candidates = vars(self).get("candidates", ())  # a part of the graph has none
        taken = [vars(candidate) for candidate in candidates if candidate.accepted]
        return table_html(taken, f"{self!r}, by {self.evidence}")

    def carriers(self, parent: int, child: int) -> tuple[int, ...]:
        """The heads of layer 0 that carry an edge."""
        return tuple(sorted(c.head for c in self.candidates if c.accepted and (c.parent, c.child) == (parent, child)))

    def copy(self, as_view: bool = False) -> "ExtractedGraph":
        """The graph and its evidence; networkx.DiGraph.copy says what a view is."""
        copied: ExtractedGraph = super().copy(as_view=as_view)
        fields = ("candidates", "heads", "inferred", "attached")
        copied.__dict__.update({name: vars(self)[name] for name in fields if name in vars(self)})
        if "from_attention" in vars(self):
            copied.from_attention = self.from_attention.copy()
        return copied
