"""Graphs in which one thing about an edge is changed: what frees it, if anything does."""

from collections.abc import Sequence
from typing import Any, Literal

import causal_circuits as cc
from causal_circuits.studies.tables import figure_9_parents

# (graph, parent, child): block attention at most one half at the end of `reproduce_paper.py --figure 9 --faithful` with
# each of --seed 0, 1 and 2.
TARGETS = ((9, 0, 11), (12, 0, 18), (13, 0, 10), (13, 0, 18), (15, 0, 15), (18, 2, 18), (19, 1, 18))
D_VOCAB, ALPHA, N_CTX = 3, 0.1, 20
Variant = tuple[list[int], Literal["uniform"] | None, int]  # parents, law of the roots, the child watched


def changed_tasks(n_targets: int) -> list[tuple[dict[str, Any], cc.InContextTask]]:
    """(what it is, its task) for each variant of each target."""
    named = []
    for graph, parent, child in TARGETS[:n_targets]:
        for name, (parents, law, watched) in variants(figure_9_parents()[graph], parent, child).items():
            task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=D_VOCAB, alpha=ALPHA, roots=law)
            row = {"graph": graph, "parent": parent, "child": watched, "of_child": child, "variant": name}
            named.append((row, task))
    return named


def new_tasks(n_forests: int, seed: int) -> list[cc.InContextTask]:
    graphs = [cc.random_forest(N_CTX, seed=1000 + n_forests * seed + forest) for forest in range(n_forests)]
    return [cc.InContextTask(graph, d_vocab=D_VOCAB, alpha=ALPHA) for graph in graphs]


def earlier_siblings(parents: Sequence[int], parent: int, child: int) -> list[int]:
    """The children of `parent` before `child`."""
    return [other for other in range(child) if parents[other] == parent]


def strangers(parents: Sequence[int], parent: int, child: int) -> list[int]:
    """As many children of others before `child` as it has earlier siblings (all there are, if fewer)."""
    others = [i for i in range(child) if parents[i] not in (-1, parent)]
    return others[: len(earlier_siblings(parents, parent, child))]


def variants(parents: Sequence[int], parent: int, child: int) -> dict[str, Variant]:
    """Name -> (parents, law of the roots, the child watched); what a graph does not allow is left out."""
    siblings, others = earlier_siblings(parents, parent, child), strangers(parents, parent, child)

    def changed(new: dict[int, int]) -> list[int]:
        return [new.get(position, old) for position, old in enumerate(parents)]

    without = dict.fromkeys(siblings, -1)
    made: dict[str, Variant] = {
        "as it is": (list(parents), None, child),
        "earlier siblings made roots": (changed(without), None, child),
        "roots uniform": (list(parents), "uniform", child),
        "as many strangers made roots": (changed(dict.fromkeys(others, -1)), None, child),
    }
    behind = [position for position in range(child + 1, len(parents)) if parents[position] == -1][: len(siblings)]
    if len(behind) == len(siblings):
        made["siblings moved behind"] = (changed(without | dict.fromkeys(behind, parent)), None, child)
    if parent > 0 and parents[parent] == -1:
        made["parent given a parent"] = (changed({parent: parent - 1}), None, child)
    between = [i for i in range(max(siblings, default=parent) + 1, child) if parents[i] == -1 and i not in parents]
    if between:
        made["child moved forward"] = (changed({child: -1, between[0]: parent}), None, between[0])
    return made
