"""The file that --parents names: a graph as a JSON list."""

from pathlib import Path

import networkx as nx

import causal_circuits as cc
from causal_circuits.storage import read_json


def graph_of_file(path: Path, n_ctx: int | None, *, several: bool | None = False) -> nx.DiGraph:
    """The graph of a JSON file of parents (as `graph_from_parents` takes them), named after the file.

    With `several` it must be a list of lists, with False one parent a position; None takes both. A ValueError says what
    is wrong with the file, or that --n-ctx, given as `n_ctx`, disagrees with it.
    """
    forms = {True: "a list of lists of parents, [] for a root", False: "a list of one parent a position, -1 for a root"}
    form = " or ".join(forms.values()) if several is None else forms[several]
    try:
        parents = read_json(path)
    except OSError as error:
        raise ValueError(f"--parents must name a readable file: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--parents must name a JSON file with {form}: {error}") from error
    if several is None:
        several = isinstance(parents, list) and any(isinstance(entry, list) for entry in parents)
    if not isinstance(parents, list) or any(isinstance(entry, list) != several for entry in parents):
        raise ValueError(f"--parents must name a JSON file with {form}: {path} holds something else")
    graph = cc.graph_from_parents(parents)
    found = cc.graphs.n_ctx_of(graph)
    if n_ctx not in (None, found):
        raise ValueError(f"--n-ctx {n_ctx} and {path} disagree: its parents make n_ctx {found}; leave --n-ctx out")
    graph.graph["name"] = path.stem
    return graph
