"""On most forests layer 0's attention shows the parent of every position that has one."""

from dataclasses import dataclass
from pathlib import Path

import networkx as nx

from causal_circuits.studies.parents_file import graph_of_file
from causal_circuits.studies.recover_and_prove import RecoverAndProve
from causal_circuits.studies.study import one_of
from causal_circuits.studies.tables import GRAPHS, make_graph


@dataclass(frozen=True, kw_only=True)
class Config(RecoverAndProve):
    """On most forests layer 0's attention shows the parent of every position that has one.

    The same job as induction_head.py on any forest: train, read parents out of the attention, tell roots from children
    by the information in fresh sequences (attention alone cannot: both graphs are shown), find the heads, prove the
    circuit. The defaults are the setting of the paper's Figure 9. Where few roots share all other positions
    as children, a model trained from zero ends without the graph: with one or two it predicts as well, with three or
    four the warm start finds the graph and predicts better.

        python analyses/causal_graph.py                              # a random forest drawn from the seed
        python analyses/causal_graph.py --graph pairs --d-vocab 10
        python analyses/causal_graph.py --parents my_graph.json      # [-1, 0, 0, 2, null, ...]

    A parents file is a JSON list over the context positions before the query: entry i is the parent of position i, -1
    or null for a root. The query follows by itself, so n_ctx is the list's length plus one. The folder gets report.html
    (look at this), results.json, figures/, model/ and record/.
    """

    n_ctx: int | None = None  #: context length, query included; None: 20, or what the parents file says
    graph: str = "forest"  #: chain, pairs or forest
    root_probability: float = 0.5  #: of --graph forest
    parents: Path | None = None  #: a JSON list of parents, in place of --graph

    def make_graph(self) -> nx.DiGraph:
        if self.parents is not None:
            return graph_of_file(self.parents, self.n_ctx)
        one_of(GRAPHS, graph=self.graph)
        n_ctx = 20 if self.n_ctx is None else self.n_ctx
        return make_graph(self.graph, n_ctx, root_probability=self.root_probability, seed=self.seed)
