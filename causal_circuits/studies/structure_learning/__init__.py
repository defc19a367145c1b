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

    PC needs causal-learn (`pip install -c constraints.txt -e ".[structure]"`); without it PC is left out.

        python analyses/structure_learning.py                           # about ten minutes
        python analyses/structure_learning.py --sizes 1000 10000 --graphs 5
    """

    QUICK: ClassVar = {"sizes": (500, 2000), "graphs": 2, "pc_graphs": 1, "pc_size": 500, "steps": 40}

    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 20_000)
    """numbers of sequences"""
    graphs: int = 20
    """of Figure 9, from the first"""
    d_vocab: int = 3
    """number of tokens"""
    alpha: float = 0.1
    """Dirichlet concentration of the transition matrices"""
    steps: int = 100
    """of training layer 0's attention"""
    level: float = 0.05
    """family-wise error of every test"""
    pc_graphs: int = 20
    """graphs that PC is run on"""
    pc_size: int = 20_000
    """most sequences PC is given"""

    def check(self) -> None:
        """Sizes with which a table can be made."""
        at_least(10, sizes=self.sizes, pc_size=self.pc_size)
        at_least(1, graphs=self.graphs, steps=self.steps)
        at_least(0, pc_graphs=self.pc_graphs)
        if not 0 < self.level < 1:
            raise ValueError(f"--level must lie between 0 and 1: got {self.level}")
        cc.InContextTask(cc.graph_from_parents(figure_9_parents()[0]), self.d_vocab, self.alpha)

    def cells(self) -> list[Cell]:
        """A graph of Figure 9 each."""
        has_pc = methods.load_pc() is not None
        if not has_pc:
            sys.stderr.write(methods.MISSING + "\n")
        same = {"d_vocab": self.d_vocab, "alpha": self.alpha, "steps": self.steps, "level": self.level}
        cells = []
        for index in range(min(self.graphs, 20)):
            pc_sizes = [n for n in self.sizes if has_pc and index < self.pc_graphs and n <= self.pc_size]
            own = {"index": index, "sizes": self.sizes, "pc_sizes": pc_sizes, "seed": self.seed}
            cells.append(Cell(f"graph {index}", measure_graph, own | same))
        return cells

    def report(self, rows: Mapping[str, Any]) -> Report:
        """Totals over graphs."""
        return make_report(
            [row for of_graph in rows.values() for row in of_graph], has_pc=methods.load_pc() is not None
        )


def measure_graph(
    index: int,
    sizes: Sequence[int],
    pc_sizes: Sequence[int],
    d_vocab: int,
    alpha: float,
    steps: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One row for each setting, number of sequences and method."""
    graph = cc.graph_from_parents(figure_9_parents()[index])
    rows = []
    for setting, batch in make_batches(graph, max(sizes), d_vocab, alpha, (seed, index)).items():
        whole = methods.Table.of(batch, seed=seed + index)
        for size in [max(sizes)] if setting == NOISE else sizes:
            for name in methods.METHODS:
                if name not in (methods.PC, methods.PC_NODES) or size in pc_sizes:
                    found = methods.find_edges(name, whole[:size], level=level, steps=steps, seed=seed)
                    about = {"graph": index, "setting": setting, "sequences": size, "method": name}
                    rows.append(about | score(graph, found.proposed, found.graph) | {"seconds": found.seconds})
    return rows


def make_batches(graph: nx.DiGraph, n: int, d_vocab: int, alpha: float, seed: tuple[int, int]) -> dict[str, cc.Batch]:
    """The sequences of the three settings; the fixed matrix has rows from Dirichlet(1), entries at least .1 / S."""
    matrix = cc.tasks.matrix_family("dirichlet 1", 1, d_vocab, gamma=0.1, seed=seed[0] + 100 + seed[1])[0]
    tasks = {
        POOLED: cc.InContextTask(graph, d_vocab, alpha=alpha),
        FIXED: cc.InContextTask(graph, d_vocab, kernels=matrix),
    }
    batches = {setting: task.sample(n, seed=(seed[0], 8, seed[1])) for setting, task in tasks.items()}
    generator = np.random.default_rng((seed[0], 9, seed[1]))
    tokens = generator.integers(d_vocab, size=(n, graph.number_of_nodes() - 1))
    laws = torch.from_numpy(generator.dirichlet(np.ones(d_vocab), size=n)).float()
    return batches | {NOISE: cc.Batch(torch.from_numpy(tokens), laws)}


def score(graph: nx.DiGraph, proposed: set[tuple[int, int]], accepted: nx.DiGraph) -> dict[str, Any]:
    """Proposals and accepted edges beside the true ones, and what random proposals would have right."""
    true, recovery = cc.latent_edges(graph), cc.compare_graphs(graph, accepted)
    return {
        "edges": len(true),
        "parents_by_chance": sum(1 / child for _, child in true),
        "variance_by_chance": sum((1 - 1 / child) / child for _, child in true),
        "edges_proposed": len(proposed),
        "parents_proposed": len(true & proposed),
        "edges_found": len(true) - len(recovery.missing),
        "false_edges": len(recovery.false),
        "shd": recovery.structural_hamming_distance,
    }
