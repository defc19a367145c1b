"""Structure learning on one table: a gradient, a covariance, trained attention, and the classical methods."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.structure_learning import methods
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import curves_of, figure_9_parents

ROOTS = 0.3  # share of the positions of a graph of several parents
COUNTS = ["edges", "parents_by_chance", "variance_by_chance", "edges_proposed", "parents_proposed"]
COUNTS += ["edges_found", "false_edges"]
MEANS = {"shd": "mean_shd", "seconds": "seconds_a_graph"}
POOLED, FIXED, NOISE = SETTINGS = ("pooled prompts", "one fixed matrix", "pure noise")
INFORMATION = (methods.INFORMATION, methods.INFORMATION_GIVEN)
CLASSICS = (*INFORMATION, methods.CHOW_LIU, methods.CHOW_LIU_NODES, methods.CHOW_LIU_GIVEN)
ROW_MAXIMA = (methods.GRADIENT, methods.GRADIENT_LAWS, methods.COVARIANCE, methods.ATTENTION, *INFORMATION)
DRAWN: tuple[str, ...] = (*ROW_MAXIMA, methods.CHOW_LIU_GIVEN, methods.PC_NODES)
DRAWN += tuple(name for name in methods.METHODS_OF_SEVERAL if name not in methods.METHODS)
MOST_ERRORS = 3.5  # standard errors from chance
ABOUT = {
    POOLED: "A fresh transition matrix in every sequence: positions of a prompt share a hidden cause. A proposal is a "
    "position's best candidate, accepted if the method's own test is sure of it; attention's and the gradient's tests "
    "tell roots by the statistic of recover_graph, the others ask for dependence alone.",
    FIXED: "The same matrix behind all sequences: what the classical methods are made for. A Chow-Liu tree spans all "
    "positions, so it links roots too. A model trained on such a table can learn the matrix by heart.",
    NOISE: "Uniform tokens, and laws of the next token that have nothing to do with them: the control.",
}


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """On pooled prompts one gradient finds the graph, where classical structure learning on the same table does not.

    On the 20 forests of the paper's Figure 9. Every method is given the same table: the tokens, the query among them,
    and one sampled next token a sequence. Compared are the first gradient of layer 0's attention; the covariance of
    1[x_i = next token] and 1[x_j = query], what that gradient computes; the attention of a model trained on the table;
    mutual information, Chow-Liu trees and PC, with and without query and next token. Three settings: *pooled* over
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
        same = self.flags("d_vocab", "alpha", "steps", "level", "sizes", "seed")
        cells, graphs = [], self.graphs or (20 if self.parents == 1 else 5)
        for index in range(min(graphs, 20)):
            pc_sizes = [n for n in self.sizes if has_pc and index < self.pc_graphs and n <= self.pc_size]
            own = {"index": index, "k": self.parents, "pc_sizes": pc_sizes}
            cells.append(Cell(f"graph {index}", measure_graph, own | same))
        return cells

    def report(self, rows: Mapping[str, Any]) -> Report:
        every, has_pc = [row for of_graph in rows.values() for row in of_graph], methods.load_pc() is not None
        totals = sum_over_graphs(every)
        return Report(
            title="Structure learning on one table: a gradient, a covariance, attention, and the classics",
            checks=make_checks(totals) if self.parents == 1 else list(check_several(totals)),
            results={
                "parents_a_position": self.parents,
                "pc": "run" if has_pc else methods.MISSING,
                "summary": totals.to_dict(orient="records"),
                "rows": every,
            },
            sections=[
                show_first(every, graph_of(0, self.parents)),
                *(show_setting(totals[totals.setting == setting], setting) for setting in SETTINGS),
                *([] if has_pc else [Section("PC", methods.MISSING)]),
            ],
        )


def graph_of(index: int, k: int) -> nx.DiGraph:
    """A forest of Figure 9; with several parents a random graph over as many positions."""
    if k == 1:
        return cc.graph_from_parents(figure_9_parents()[index])
    rng, n_ctx = np.random.default_rng((k, index)), 20
    is_root = [i < k or rng.random() < ROOTS for i in range(n_ctx)]
    parents = [[] if is_root[i] else sorted(rng.choice(i, k, replace=False).tolist()) for i in range(n_ctx)]
    return cc.graph_from_parents([*parents, sorted(rng.choice(n_ctx, k, replace=False).tolist())])


def measure_graph(
    index: int, k: int, sizes: Sequence[int], pc_sizes: Sequence[int], d_vocab: int, alpha: float, seed: int, **how: Any
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
                    found = methods.find_edges(name, whole[:size], seed=seed, **how)
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


def sum_over_graphs(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    groups = pd.DataFrame(rows).groupby(["setting", "method", "sequences"], sort=False)
    means = groups[list(MEANS)].mean().rename(columns=MEANS)
    return pd.concat([groups.size().rename("graphs"), groups[COUNTS].sum(), means], axis=1).reset_index()


def make_checks(totals: pd.DataFrame) -> list[Check]:
    by = totals[totals.sequences == totals.sequences.max()].set_index(["setting", "method"])
    pooled = totals[totals.setting == POOLED]
    return [*check_pooled(by.loc[POOLED]), *check_pc(pooled), *check_fixed(by.loc[FIXED]), check_noise(by.loc[NOISE])]


def proposals(of_setting: pd.DataFrame, names: Sequence[str]) -> str:
    return "; ".join(f"{name} {of_setting.parents_proposed[name]}" for name in names)


def check_pooled(pooled: pd.DataFrame) -> Iterator[Check]:
    edges = pooled.edges.iloc[0]
    for name in (methods.GRADIENT, methods.GRADIENT_LAWS, methods.ATTENTION):
        row = pooled.astype(object).loc[name]
        yield Check(
            bool(row.edges_found == edges and not row.false_edges),
            f"{POOLED}: {name}: every parent and no false edge from {row.sequences:,} sequences",
            f"{row.edges_found} of {edges} parents, {row.false_edges} false edges",
        )
    row = pooled.astype(object).loc[methods.COVARIANCE]
    yield Check(
        bool(row.parents_proposed == edges),
        f"{POOLED}: the {methods.COVARIANCE}, counted without a model, has its largest entry of each row at the parent",
        f"{row.parents_proposed} of {edges} parents; its plain test of dependence accepts {row.false_edges} false "
        "edges, in rows of roots",
    )
    yield Check(
        bool((pooled.loc[list(CLASSICS)].parents_proposed < 0.5 * edges).all()),
        f"{POOLED}: the classics propose fewer than half of the parents, also where they are given query and label",
        f"{proposals(pooled, CLASSICS)} of {edges}",
    )


def check_several(totals: pd.DataFrame) -> Iterator[Check]:
    by = totals[totals.sequences == totals.sequences.max()].set_index(["setting", "method"]).astype(object)
    pooled, noise = by.loc[POOLED], by.loc[NOISE]
    for name in (methods.MATCHES_LAWS, methods.MATCHES):
        row = pooled.loc[name]
        yield Check(
            bool(row.edges_found >= 0.9 * row.edges and not row.false_edges),
            f"{POOLED}: {name}: nine edges of ten and no false one from {row.sequences:,} sequences",
            f"{row.edges_found} of {row.edges} edges, {row.false_edges} false",
        )
    others = [name for name in methods.METHODS_OF_SEVERAL[2:] if name in pooled.index]
    most = max(pooled.loc[name].edges_found - pooled.loc[name].false_edges for name in others)
    best = pooled.loc[methods.MATCHES]
    yield Check(
        bool(most < best.edges_found - best.false_edges),
        f"{POOLED}: no other method, trained heads among them, has as many edges, less the false ones, from labels",
        "; ".join(f"{n} {pooled.loc[n].edges_found} and {pooled.loc[n].false_edges} false" for n in others),
    )
    accepted = noise.loc[[methods.MATCHES, methods.MATCHES_LAWS]].false_edges.sum()
    yield Check(bool(accepted == 0), f"{NOISE}: matches accept no edge", f"{accepted} accepted")


def check_pc(pooled: pd.DataFrame) -> Iterator[Check]:
    for name in (methods.PC, methods.PC_NODES):
        for row in pooled[pooled.method == name].tail(1).itertuples():
            yield Check(
                bool(row.false_edges > row.edges),
                f"{POOLED}: {name} does not tell edges from other pairs: of these it links more than there are edges",
                f"{row.edges_found} of {row.edges} edges and {row.false_edges:,} pairs that are none, from "
                f"{row.sequences:,} sequences",
            )


def check_fixed(fixed: pd.DataFrame) -> Iterator[Check]:
    yield Check(
        bool((fixed.loc[list(CLASSICS)].parents_proposed > 0.9 * fixed.edges.iloc[0]).all()),
        f"{FIXED}: the classics, made for it, propose over 90% of the parents",
        f"{proposals(fixed, CLASSICS)} of {fixed.edges.iloc[0]}",
    )
    trained = fixed.astype(object).loc[methods.ATTENTION]
    yield Check(
        bool(trained.parents_proposed < 0.5 * trained.edges),
        f"{FIXED}: training finds less than half of the graph, since the target's law needs no context",
        f"{trained.parents_proposed} of {trained.edges} parents proposed ({trained.parents_by_chance:.1f} by chance)",
    )


def check_noise(noise: pd.DataFrame) -> Check:
    rows = noise.loc[list(ROW_MAXIMA)]
    errors = (rows.parents_proposed - rows.parents_by_chance) / rows.variance_by_chance**0.5
    return Check(
        bool((errors.abs() < MOST_ERRORS).all()),
        f"{NOISE}: what has no structure gives true edges by chance only (within {MOST_ERRORS} standard errors)",
        f"{proposals(noise, ROW_MAXIMA)}, by chance {rows.parents_by_chance.iloc[-1]:.1f}",
    )


def show_first(rows: Sequence[dict[str, Any]], graph: nx.DiGraph) -> Section:
    own = [row for row in rows if row["graph"] == 0 and row["setting"] == POOLED]
    most = max(row["sequences"] for row in own)
    accepted = {row["method"]: row["accepted"] for row in own if row["sequences"] == most}
    drawn = [name for name in (methods.GRADIENT, methods.MATCHES, methods.CHOW_LIU) if name in accepted]
    picture = Figure(figsize=(8.5, 3.2 * (1 + len(drawn))), layout="constrained")
    axes = picture.subplots(1 + len(drawn))
    figures.plot_graph_comparison(graph, ax=axes[0]).set_title("the graph behind the sequences", pad=24)
    for ax, name in zip(axes[1:], drawn, strict=True):
        found = nx.DiGraph(graph)
        found.remove_edges_from(cc.latent_edges(graph))
        found.add_edges_from(accepted[name])
        figures.plot_graph_comparison(graph, found, ax=ax).set_title(name, pad=24)
    sentence = f"Edges that each accepts from the same {most:,} pooled prompts; false ones hang below the line."
    return Section("One graph, and what is made of it", sentence, figures={"forests": picture})


def show_setting(totals: pd.DataFrame, setting: str) -> Section:
    """The rows of a setting, and but for noise curves over the number of sequences, a line a method."""
    drawn = {} if setting == NOISE else {setting.replace(" ", "_"): plot_methods(totals)}
    return Section(setting.capitalize(), ABOUT[setting], figures=drawn, table=totals)


def plot_methods(totals: pd.DataFrame) -> Figure:
    values = {
        "share of parents proposed": totals.parents_proposed / totals.edges,
        "share of parents accepted": totals.edges_found / totals.edges,
        "false edges a graph": totals.false_edges / totals.graphs,
    }
    figure = Figure(figsize=(13.0, 5.0), layout="constrained")
    for ax, (label, value) in zip(figure.subplots(1, 3), values.items(), strict=True):
        curves = curves_of(totals.assign(value=value), "sequences", "value", "{method}")
        drawn = {name: curves[name] for name in DRAWN if name in curves}
        figures.plot_curves(drawn, xlabel="sequences", ylabel=label, legend=False, ax=ax)
    lines, names = ax.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    return figure
