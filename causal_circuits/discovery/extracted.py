"""A graph read out of a model, with the evidence that it rests on."""

import networkx as nx

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery.candidates import CandidateEdge
from causal_circuits.discovery.head_matches import FurtherParent
from causal_circuits.discovery.several_heads import HeadReport


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
        further_parents: parents of the target that no head carries (`FurtherParent`): more parents than heads, for one.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> found = cc.extract_graph(cc.plant_circuit(task.graph, d_vocab=3), task, n_sequences=2000)
    >>> found.evidence
    'attention, and information in 2,000 sequences (computed without the model)'
    >>> cc.compare_graphs(task.graph, found.from_attention).exact, found.carriers(0, 1)
    (True, (0,))
    """

    candidates: tuple[CandidateEdge, ...]
    from_attention: nx.DiGraph
    heads: tuple[HeadReport, ...]
    further_parents: tuple[FurtherParent, ...]
    attached: tuple[str, ...]

    @property
    def roots_tested(self) -> bool:
        """Whether sequences told roots from children; if not, a warning belongs with any figure made of it."""
        return bool(self.graph["roots_tested"])

    @property
    def evidence(self) -> str:
        """What decided, in words: attention alone, or also the information in how many sequences."""
        return str(self.graph["evidence"])

    def carriers(self, parent: int, child: int) -> tuple[int, ...]:
        """The heads of layer 0 that carry an edge."""
        accepted = (c for c in self.candidates if c.accepted and (c.parent, c.child) == (parent, child))
        return tuple(sorted(edge.head for edge in accepted))

    def copy(self, as_view: bool = False) -> "ExtractedGraph":
        """The graph and its evidence; networkx.DiGraph.copy says what a view is."""
        copied: ExtractedGraph = super().copy(as_view=as_view)
        fields = ("candidates", "heads", "further_parents", "attached")
        copied.__dict__.update({name: vars(self)[name] for name in fields if name in vars(self)})
        if "from_attention" in vars(self):
            copied.from_attention = self.from_attention.copy()
        return copied
