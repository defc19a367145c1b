"""The heads of a model on one sequence, with tokens and roles as labels, and a slider through training."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.films import SequenceAttention
from causal_circuits.graphs import has_query as graph_has_query
from causal_circuits.graphs import n_ctx_of
from causal_circuits.pages.attention_view import AttentionView, attention_view


@check_arguments
def sequence_view(
    seen: SequenceAttention,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    title: str | None = None,
) -> AttentionView:
    """Every head's attention on a sequence; where several steps were seen, a slider goes through them.

    Args:
        seen: from `sequence_attention`, or from a `SequenceRecorder` that watched a training.
        graph: names the query, and says of each parent whose parent it is; None takes the last token for the query.
        names: of the tokens, one for each of the vocabulary; None writes their numbers.
        roles: of the heads ("induction"), in the order of `seen.heads`.
        title: above the view; None writes the sequence.

    >>> import torch
    >>> from causal_circuits import chain_graph, plant_circuit
    >>> from causal_circuits.films import sequence_attention
    >>> model = plant_circuit(chain_graph(4), d_vocab=3)
    >>> sequence_view(sequence_attention(model, torch.tensor([0, 1, 2, 1])), chain_graph(4)).labels
    ('0, parent of 1', '1, parent of 2', '2', 'query 1')
    """
    if roles is not None and len(roles) != len(seen.heads):
        raise ValueError(f"roles must name each of the {len(seen.heads)} heads: got {len(roles)}")
    heads = [f"L{layer}H{head}" for layer, head in seen.heads]
    if roles is not None:
        heads = [f"{head} {role}" for head, role in zip(heads, roles, strict=True)]
    labels = position_labels(seen.tokens, graph=graph, names=names)
    several = len(seen.steps) > 1
    return attention_view(
        seen.attention if several else seen.attention[0],
        labels,
        heads,
        steps=seen.steps if several else None,
        title=f"Sequence {' '.join(position_labels(seen.tokens, False, names=names))}" if title is None else title,
    )


@check_arguments
def position_labels(
    tokens: Tensor | np.ndarray | Sequence[int],
    has_query: bool = True,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """A label for each position of one sequence that gives token and role; CircuitsVis adds the position.

    Args:
        tokens: [n_ctx], of one sequence.
        has_query: name the last position "query" (see `graphs.has_query`); a graph says it by itself.
        graph: adds to each parent whose parent it is.
        names: of the tokens, one for each of the vocabulary; None writes their numbers.

    >>> position_labels([3, 0, 7])
    ['3', '0', 'query 7']
    >>> from causal_circuits.graphs import graph_from_parents
    >>> position_labels([0, 1, 0, 1], graph=graph_from_parents([None, 0, 0]), names=["heads", "tails"])
    ['heads, parent of 1, 2', 'tails', 'heads', 'query tails']
    """
    values = [int(token) for token in tokens]
    if names is not None and values and not 0 <= min(values) <= max(values) < len(names):
        raise ValueError(
            f"names must name every token of the vocabulary: got {len(names)} for tokens up to {max(values)}"
        )
    labels = [str(token) if names is None else names[token] for token in values]
    if has_query if graph is None else graph_has_query(graph):
        labels[-1:] = [f"query {token}" for token in labels[-1:]]
    if graph is None:
        return labels
    if len(labels) != n_ctx_of(graph):
        raise ValueError(f"graph and sequence must cover the same positions: {n_ctx_of(graph)} against {len(labels)}")
    return [label + _role(graph, position) for position, label in enumerate(labels)]


def _role(graph: nx.DiGraph, position: int) -> str:
    """`, parent of 4, 6`, or nothing; the query's child, the target, goes without saying."""
    n_ctx = n_ctx_of(graph)
    given = {n_ctx} if graph_has_query(graph) else set()
    children = ["the target" if child == n_ctx else str(child) for child in sorted(set(graph[position]) - given)]
    return f", parent of {', '.join(children)}" if children else ""
