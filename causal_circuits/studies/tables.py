"""What reports of studies share: means over rows, graphs by name, the paper's 20 forests."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from statistics import fmean
from typing import Any

import networkx as nx

import causal_circuits as cc

Points = Sequence[tuple[int | float, int | float]]  # (x, y)
GRAPHS: dict[str, Callable[[int], nx.DiGraph]] = {
    "chain": lambda n_ctx: cc.chain_graph(n_ctx),
    "pairs": lambda n_ctx: cc.pairs_graph(n_ctx),
    "forest": lambda n_ctx: cc.random_forest(n_ctx, seed=0),
}


def figure_9_parents() -> list[list[int]]:
    """The parents of the 20 forests of the paper's Figure 9 (-1: a root), n_ctx 20.

    The paper does not print them: re-derived from the seed of the authors' notebook.
    """
    text = files("causal_circuits.studies").joinpath("figure9_graphs.json").read_text(encoding="utf-8")
    return [graph["parents"] for graph in json.loads(text)["graphs"]]


def check_lengths(lengths: Sequence[int]) -> None:
    """A ValueError unless --lengths names two different context lengths or more, of 3 positions or more."""
    if len(lengths) < 2 or len(set(lengths)) < len(lengths):
        raise ValueError(f"--lengths must name at least two different context lengths: got {list(lengths)}")
    if min(lengths) < 3:
        raise ValueError(f"--lengths must be at least 3: got {min(lengths)}")


def where(rows: Iterable[Mapping[str, Any]], **only: Any) -> list[Mapping[str, Any]]:
    """The rows that have these entries."""
    return [row for row in rows if all(row[name] == wanted for name, wanted in only.items())]


def means_by(rows: Iterable[Mapping[str, Any]], key: str, value: str) -> list[tuple[int | float, float]]:
    """(key, mean of value) in order of key; NaNs are left out.

    >>> means_by([{"n": 2, "loss": 1.0}, {"n": 2, "loss": 3.0}, {"n": 1, "loss": float("nan")}], "n", "loss")
    [(2, 2.0)]
    """
    kept = [row for row in rows if row[value] == row[value]]
    return [(at, fmean(float(row[value]) for row in where(kept, **{key: at}))) for at in sorted({r[key] for r in kept})]


def listed(points: Points, digits: str = ".3g") -> str:
    """Points as text.

    >>> listed([(10, 0.25), (20, 0.125)])
    '10: 0.25, 20: 0.125'
    """
    return ", ".join(f"{at:g}: {value:{digits}}" for at, value in points)


def p_text(p_value: float) -> str:
    """A p-value as text.

    >>> p_text(0.00123), p_text(0.0)
    ('1.2e-03', '< 1e-300')
    """
    return f"{p_value:.1e}" if p_value > 1e-300 else "< 1e-300"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of a .md file; nothing without a row.

    >>> print(markdown([{"graph": "chain", "edges": 18}]), end="")
    | graph | edges |
    |---|---|
    | chain | 18 |
    """
    if not rows:
        return ""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *body = ("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |\n" for line in lines)
    return "".join([head, "|" + "---|" * len(rows[0]) + "\n", *body])
