"""What the rows of `structure_learning` add up to: totals over graphs, checks, curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import pandas as pd
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.structure_learning import methods
from causal_circuits.studies.study import Report

COUNTS = ["edges", "parents_by_chance", "variance_by_chance", "edges_proposed", "parents_proposed"]
COUNTS += ["edges_found", "false_edges"]
MEANS = {"shd": "mean_shd", "seconds": "seconds_a_graph"}
POOLED, FIXED, NOISE = SETTINGS = ("pooled prompts", "one fixed matrix", "pure noise")
CLAIMED = {POOLED: POOLED, FIXED: "one fixed transition matrix", NOISE: NOISE}  # as claims and headings say it
INFORMATION = (methods.INFORMATION, methods.INFORMATION_GIVEN)
CLASSICS = (*INFORMATION, methods.CHOW_LIU, methods.CHOW_LIU_NODES, methods.CHOW_LIU_GIVEN)
ROW_MAXIMA = (methods.GRADIENT, methods.GRADIENT_LAWS, methods.COVARIANCE, methods.ATTENTION, *INFORMATION)
DRAWN: tuple[str, ...] = (*ROW_MAXIMA, methods.CHOW_LIU_GIVEN, methods.PC_NODES)
DRAWN += tuple(name for name in methods.METHODS_OF_SEVERAL if name not in methods.METHODS)
MOST_ERRORS = 3.5  # standard errors from chance
ABOUT = {
    POOLED: "A fresh transition matrix in every sequence: positions of a prompt share a hidden cause, and pooled "
    "tables no longer obey the data processing inequality. All methods see the same tokens and one sampled next token "
    "a sequence; rows named exact laws see the law in its place. A proposal is a position's best candidate, accepted "
    "if the method's own test is sure of it; attention's and the gradient's tests tell roots by the statistic of "
    "recover_graph, the others ask for dependence alone.",
    FIXED: "The same matrix behind all sequences: what the classical methods are made for. A Chow-Liu tree spans all "
    "positions, so it links roots too. A model trained on such a table can learn the matrix by heart.",
    NOISE: "Uniform tokens, and laws of the next token that have nothing to do with them: the control. The graph that "
    "proposals are compared with is that of the same number, which made none of these sequences.",
}


def make_report(rows: Sequence[dict[str, Any]], graph: nx.DiGraph, *, has_pc: bool, k: int = 1) -> Report:
    """Checks, results and sections; k parents a position; `graph`: the first one, which is drawn."""
    totals = sum_over_graphs(rows)
    missing = [] if has_pc else [Section("PC", methods.MISSING)]
    return Report(
        title="Structure learning on one table: a gradient, a covariance, attention, and the classics",
        checks=make_checks(totals) if k == 1 else list(check_several(totals)),
        results={
            "parents_a_position": k,
            "pc": "run" if has_pc else methods.MISSING,
            "summary": totals.to_dict(orient="records"),
            "rows": list(rows),
        },
        sections=[
            show_first(rows, graph),
            *(show_setting(totals[totals.setting == setting], setting) for setting in SETTINGS),
            *missing,
        ],
    )


def sum_over_graphs(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each setting, method and number of sequences."""
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
    """What the gradient, the attention and the covariance find on pooled prompts, and the classics do not."""
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
    """What matches, trained heads and the classics find where positions have several parents."""
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
    """Whether PC, from the most sequences it was given, links more pairs that are no edge than there are edges."""
    for name in (methods.PC, methods.PC_NODES):
        for row in pooled[pooled.method == name].tail(1).itertuples():
            yield Check(
                bool(row.false_edges > row.edges),
                f"{POOLED}: {name} does not tell edges from other pairs: of these it links more than there are edges",
                f"{row.edges_found} of {row.edges} edges and {row.false_edges:,} pairs that are none, from "
                f"{row.sequences:,} sequences",
            )


def check_fixed(fixed: pd.DataFrame) -> Iterator[Check]:
    """What is found where one transition matrix is behind all sequences."""
    yield Check(
        bool((fixed.loc[list(CLASSICS)].parents_proposed > 0.9 * fixed.edges.iloc[0]).all()),
        f"{CLAIMED[FIXED]}: the classics, made for it, propose over 90% of the parents",
        f"{proposals(fixed, CLASSICS)} of {fixed.edges.iloc[0]}",
    )
    trained = fixed.astype(object).loc[methods.ATTENTION]
    yield Check(
        bool(trained.parents_proposed < 0.5 * trained.edges),
        f"{CLAIMED[FIXED]}: training finds less than half of the graph, since the target's law needs no context",
        f"{trained.parents_proposed} of {trained.edges} parents proposed ({trained.parents_by_chance:.1f} by chance)",
    )


def check_noise(noise: pd.DataFrame) -> Check:
    """Whether what has no structure gives true edges by chance only."""
    rows = noise.loc[list(ROW_MAXIMA)]
    errors = (rows.parents_proposed - rows.parents_by_chance) / rows.variance_by_chance**0.5
    return Check(
        bool((errors.abs() < MOST_ERRORS).all()),
        f"{NOISE}: what has no structure gives true edges by chance only (within {MOST_ERRORS} standard errors)",
        f"{proposals(noise, ROW_MAXIMA)}, by chance {rows.parents_by_chance.iloc[-1]:.1f}",
    )


def show_first(rows: Sequence[dict[str, Any]], graph: nx.DiGraph) -> Section:
    """What the gradient (or matches) and Chow-Liu make of the first graph, from pooled prompts."""
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
    values = {
        "share of parents proposed": totals.parents_proposed / totals.edges,
        "share of parents accepted": totals.edges_found / totals.edges,
        "false edges a graph": totals.false_edges / totals.graphs,
        "structural Hamming distance, mean": totals.mean_shd,
    }
    drawn = {} if setting == NOISE else {setting.replace(" ", "_"): plot_methods(totals, values)}
    return Section(CLAIMED[setting].capitalize(), ABOUT[setting], figures=drawn, table=totals)


def plot_methods(totals: pd.DataFrame, values: Mapping[str, pd.Series]) -> Figure:
    """Values over the number of sequences, a panel each, a line a method; one legend for all."""
    figure = Figure(figsize=(10.5, 8.0), layout="constrained")
    for ax, (label, value) in zip(figure.subplots(2, 2).flat, values.items(), strict=True):
        groups = totals.assign(value=value).set_index("sequences").groupby("method").value
        curves = {name: list(groups.get_group(name).items()) for name in DRAWN if name in groups.groups}
        figures.plot_curves(curves, xlabel="sequences", ylabel=label, legend=False, ax=ax)
    lines, names = ax.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    return figure
