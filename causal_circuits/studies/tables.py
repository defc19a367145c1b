"""What reports of studies share: graphs by name, rows as text, intervals, the paper's 20 forests."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
from torch import Tensor

import causal_circuits as cc
from causal_circuits.pages.report import State

GRAPHS = ("chain", "pairs", "forest")


def make_graph(name: str, n_ctx: int, *, root_probability: float = 0.5, seed: int = 0) -> nx.DiGraph:
    """The graph of a name, of those that studies use; `root_probability` and `seed` are a forest's."""
    if name == "forest":
        return cc.random_forest(n_ctx, root_probability, seed=seed)
    if name == "star":
        return cc.graph_from_parents([None] + [0] * (n_ctx - 2))
    if name == "two-parent":  # the two positions before
        return cc.ngram_graph(n_ctx, order=2)
    return cc.chain_graph(n_ctx) if name == "chain" else cc.pairs_graph(n_ctx)


def two_parents_graph(n_ctx: int) -> nx.DiGraph:
    """The paper's: parents (i - 1) // 2 and i - 1, the target's among them; 0 and 1 are roots."""
    graph = cc.graph_from_parents([[], [], *([(i - 1) // 2, i - 1] for i in range(2, n_ctx + 1))])
    graph.graph["name"] = "the paper's two-parent graph"
    return graph


def parents_first(values: np.ndarray | Tensor, graph: nx.DiGraph) -> int:
    """How many parents are the largest entry [child, parent] of their row, among earlier positions."""
    return sum(int(values[child, :child].argmax()) == parent for parent, child in cc.latent_edges(graph))


def timing_of(record: cc.TrainingRecord) -> dict[str, Any]:
    return {
        "train_s": record.seconds,
        "steps": len(record.losses),
        "train_sequences_per_s": record.sequences_per_s,
        "path": record.path,
    }


def figure_9_graphs() -> list[dict[str, Any]]:
    """The 20 forests of the paper's Figure 9, n_ctx 20, and what the authors recorded of each.

    The paper does not print them: re-derived from the seed of the authors' notebook.
    """
    text = files("causal_circuits.studies").joinpath("figure9_graphs.json").read_text(encoding="utf-8")
    graphs: list[dict[str, Any]] = json.loads(text)["graphs"]
    return graphs


def figure_9_parents() -> list[list[int]]:
    """Their parents; -1: a root."""
    return [graph["parents"] for graph in figure_9_graphs()]


def check_lengths(lengths: Sequence[int]) -> None:
    """A ValueError unless --lengths names two different context lengths or more, of 3 positions or more."""
    if len(lengths) < 2 or len(set(lengths)) < len(lengths):
        raise ValueError(f"--lengths must name at least two different context lengths: got {list(lengths)}")
    if min(lengths) < 3:
        raise ValueError(f"--lengths must be at least 3: got {min(lengths)}")


def curves_of(table: pd.DataFrame, x: str, y: str, name: str, *, mean: bool = True) -> dict[str, list[tuple[Any, Any]]]:
    """Curves for a figure, by a name made from the columns ("alpha {alpha:g}"): means of y at each x, or all points."""
    named = table.assign(curve=[name.format(**row) for row in table.to_dict("records")]).dropna(subset=y)
    if mean:
        named = named.groupby(["curve", x], sort=False)[y].mean().reset_index()
    return {
        curve: list(zip(of[x].tolist(), of[y].tolist(), strict=True))
        for curve, of in named.groupby("curve", sort=False)
    }


def dots_of(table: pd.DataFrame, group: str, value: str, series: str) -> dict[str, dict[str, float]]:
    """Dots for a figure, series -> group -> value: means over the rows of each."""
    return {
        str(name): of.groupby(group, sort=False)[value].mean().dropna().to_dict()
        for name, of in table.groupby(series, sort=False)
    }


def listed(values: "pd.Series[float]", digits: str = ".3g") -> str:
    """A series as text: "10: 0.25, 20: 0.125"."""
    return ", ".join(f"{at:g}: {value:{digits}}" for at, value in values.items())


def edge_table(found: cc.discovery.ExtractedGraph, graph: nx.DiGraph) -> pd.DataFrame:
    """The edges that attention proposes, and what became of them, beside the true ones."""
    columns = ["child", "parent", "head", "weight", "information_share", "p_value", "accepted", "reason"]
    table = found.to_frame()[columns]
    true = [graph.has_edge(parent, child) for parent, child in zip(table.parent, table.child, strict=True)]
    return table.assign(p_value=table.p_value.map(p_text), true_edge=true)


def p_text(p_value: float) -> str:
    if p_value != p_value:
        return "-"
    return f"{p_value:.1e}" if p_value > 1e-300 else "< 1e-300"


SHARE = (0.0, 1.0)


def interval(values: Iterable[float], limits: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t, cut at the limits of the values; without width for one value."""
    numbers = np.array([*values], dtype=float)
    n, half = len(numbers), 0.0
    if n > 1:
        half = float(scipy.stats.t.ppf(0.975, n - 1) * numbers.std(ddof=1) / n**0.5)
    low, high = np.clip([numbers.mean() - half, numbers.mean() + half], *limits)
    return float(low), float(high)


def interval_text(values: Iterable[float], limits: tuple[float, float] = (-np.inf, np.inf)) -> str:
    """Mean and interval; one value alone has none."""
    numbers = [*values]
    low, high = interval(numbers, limits)
    return f"{np.mean(numbers):.3f}" + (f" [{low:.3f}, {high:.3f}]" if len(numbers) > 1 else " (one value)")


def is_positive(low: float, high: float) -> State:
    """Whether what has this interval is above zero: undecided where it holds zero, or is not known."""
    return "passed" if low > 0 else "refuted" if high < 0 else "undecided"


def is_share(hits: "pd.Series[bool]", least: float) -> tuple[State, str]:
    """Whether at least this share of all such cases are hits, and the words: undecided where the interval holds it."""
    if not len(hits):
        return "undecided", "0 of 0"
    share = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci()
    said = f"{hits.sum()} of {len(hits)}, 95% interval {share.low:.0%} to {share.high:.0%}"
    return is_positive(share.low - least, share.high - least), said


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of a .md file; nothing without a row."""
    if not rows:
        return ""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *body = ("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |\n" for line in lines)
    return "".join([head, "|" + "---|" * len(rows[0]) + "\n", *body])
