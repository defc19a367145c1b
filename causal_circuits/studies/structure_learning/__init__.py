"""Structure learning on one table: a gradient, a covariance, trained attention, and the classical methods."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.studies.structure_learning import methods
from causal_circuits.studies.structure_learning.report import FIXED, NOISE, POOLED, make_report
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import figure_9_parents

ROOTS = 0.3  # share of the positions of a graph of several parents


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """On pooled prompts one gradient finds the graph, where classical structure learning on the same table does not.

    On the 20 forests of the paper's Figure 9. Every method is given the same table: the tokens, the query among them,
    and one sampled next token a sequence. The first gradient of layer 0's attention, and once more with the exact law
    of the next token; the covariance of 1[x_i = next token] and 1[x_j = query], what that gradient computes; the
    attention of a model trained on the table; mutual information and the Chow-Liu tree, of the positions alone, with
    query and next token as further nodes, and given them; PC with chi-squared tests. Three settings: *pooled* over
    prompts with a fresh transition matrix each, the setting of the paper; *one fixed matrix* behind all sequences,
    which the classical methods are made for; and *pure noise*, where nothing can be found.

    With --parents K > 1, on 5 random graphs whose positions have K parents or none, without a query: the statistic
    behind `recover_graph` for several parents, beside its first-order part, K trained heads (from the most sequences
    alone), and the classical methods.

    PC needs causal-learn (`pip install -c constraints.txt -e ".[structure]"`); without it PC is left out.

        python analyses/structure_learning.py                           # some four minutes
        python analyses/structure_learning.py --sizes 1000 10000 --graphs 5
        python analyses/structure_learning.py --parents 2
    """

    QUICK: ClassVar = {"sizes": (500, 2000), "graphs": 2, "pc_graphs": 1, "pc_size": 500, "steps": 40}

    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 20_000)  #: numbers of sequences
    graphs: int | None = None  #: of Figure 9, from the first: all 20; of several parents 5
    parents: int = 1  #: of a position: 1 (the forests of Figure 9), 2 or 3 (random graphs over 20 positions, 30% roots)
    d_vocab: int = 3  #: number of tokens
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 100  #: of training layer 0's attention
    level: float = 0.05  #: family-wise error of every test
    pc_graphs: int = 20  #: graphs that PC is run on
    pc_size: int = 20_000  #: most sequences PC is given

    def check(self) -> None:
        at_least(10, sizes=self.sizes, pc_size=self.pc_size)
        at_least(1, graphs=self.graphs, steps=self.steps)
        at_least(0, pc_graphs=self.pc_graphs)
        if not 1 <= self.parents <= 3:
            raise ValueError(f"--parents must lie in 1 .. 3: got {self.parents}")
        if not 0 < self.level < 1:
            raise ValueError(f"--level must lie between 0 and 1: got {self.level}")
        cc.InContextTask(cc.graph_from_parents(figure_9_parents()[0]), self.d_vocab, self.alpha)

    def cells(self) -> list[Cell]:
        has_pc = methods.load_pc() is not None
        if not has_pc:
            sys.stderr.write(methods.MISSING + "\n")
        same = {"d_vocab": self.d_vocab, "alpha": self.alpha, "steps": self.steps, "level": self.level}
        cells, graphs = [], self.graphs or (20 if self.parents == 1 else 5)
        for index in range(min(graphs, 20)):
            pc_sizes = [n for n in self.sizes if has_pc and index < self.pc_graphs and n <= self.pc_size]
            own = {"index": index, "k": self.parents, "sizes": self.sizes, "pc_sizes": pc_sizes, "seed": self.seed}
            cells.append(Cell(f"graph {index}", measure_graph, own | same))
        return cells

    def report(self, rows: Mapping[str, Any]) -> Report:
        every = [row for of_graph in rows.values() for row in of_graph]
        return make_report(every, graph_of(0, self.parents), has_pc=methods.load_pc() is not None, k=self.parents)


def graph_of(index: int, k: int) -> nx.DiGraph:
    """A forest of Figure 9; with several parents a random graph over as many positions."""
    if k == 1:
        return cc.graph_from_parents(figure_9_parents()[index])
    rng, n_ctx = np.random.default_rng((k, index)), 20
    is_root = [i < k or rng.random() < ROOTS for i in range(n_ctx)]
    parents = [[] if is_root[i] else sorted(rng.choice(i, k, replace=False).tolist()) for i in range(n_ctx)]
    return cc.graph_from_parents([*parents, sorted(rng.choice(n_ctx, k, replace=False).tolist())])


def measure_graph(
    index: int,
    k: int,
    sizes: Sequence[int],
    pc_sizes: Sequence[int],
    d_vocab: int,
    alpha: float,
    steps: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One row for each setting, number of sequences and method."""
    graph, rows = graph_of(index, k), []
    is_pc = (methods.PC, methods.PC_NODES, methods.PC_LABEL)
    trained = (methods.ATTENTION, methods.ATTENTION_LAWS) if k > 1 else ()
    for setting, batch in make_batches(graph, k, max(sizes), d_vocab, alpha, (seed, index)).items():
        whole = methods.Table.of(batch, seed=seed + index, k=k)
        for size in [max(sizes)] if setting == NOISE else sizes:
            for name in methods.METHODS if k == 1 else methods.METHODS_OF_SEVERAL:
                if (name not in is_pc or size in pc_sizes) and (name not in trained or size == max(sizes)):
                    found = methods.find_edges(name, whole[:size], level=level, steps=steps, seed=seed)
                    row = {"graph": index, "setting": setting, "sequences": size, "method": name}
                    row |= score(graph, found.proposed, set(found.graph.edges), k) | {"seconds": found.seconds}
                    rows.append(row | ({"accepted": sorted(found.graph.edges)} if index == 0 else {}))
    return rows


def make_batches(
    graph: nx.DiGraph, k: int, n: int, d_vocab: int, alpha: float, seed: tuple[int, int]
) -> dict[str, cc.Batch]:
    """The sequences of the three settings; the fixed matrix has rows from Dirichlet(1), entries at least .1 / S."""
    if k == 1:
        matrix = cc.tasks.matrix_family("dirichlet 1", 1, d_vocab, gamma=0.1, seed=seed[0] + 100 + seed[1])[0]
        fixed = cc.InContextTask(graph, d_vocab, transition_matrices=matrix)
    else:
        rows = np.random.default_rng((seed[0], 10, seed[1])).dirichlet(np.ones(d_vocab), size=[d_vocab] * k)
        fixed = cc.InContextTask(graph, d_vocab, transition_matrices={k: 0.9 * rows + 0.1 / d_vocab})
    tasks = {POOLED: cc.InContextTask(graph, d_vocab, alpha=alpha), FIXED: fixed}
    batches = {setting: task.sample(n, seed=(seed[0], 8, seed[1])) for setting, task in tasks.items()}
    generator = np.random.default_rng((seed[0], 9, seed[1]))
    tokens = generator.integers(d_vocab, size=(n, graph.number_of_nodes() - 1))
    laws = torch.from_numpy(generator.dirichlet(np.ones(d_vocab), size=n)).float()
    return batches | {NOISE: cc.Batch(torch.from_numpy(tokens), laws)}


def score(graph: nx.DiGraph, proposed: methods.Edges, accepted: methods.Edges, k: int) -> dict[str, Any]:
    """Proposals and accepted edges beside the true ones, and what k random proposals a row would have right."""
    target = cc.graphs.n_ctx_of(graph)
    true, accepted = ({edge for edge in edges if edge[1] < target} for edges in (graph.edges, accepted))
    by_chance = {child: k / child for _, child in true}
    return {
        "edges": len(true),
        "parents_by_chance": sum(k * share for share in by_chance.values()),
        "variance_by_chance": sum(
            k * share * (1 - share) * (child - k) / max(child - 1, 1) for child, share in by_chance.items()
        ),
        "edges_proposed": len(proposed),
        "parents_proposed": len(true & proposed),
        "edges_found": len(true & accepted),
        "false_edges": len(accepted - true),
        "shd": len(true ^ accepted),
    }
