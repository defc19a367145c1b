"""The heads of a model on one sequence, drawn by CircuitsVis with tokens as labels and the true edges outlined."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.films import SequenceAttention, sequence_attention
from causal_circuits.graphs import attention_cells, n_ctx_of
from causal_circuits.graphs import has_query as graph_has_query
from causal_circuits.models import HookedTransformer
from causal_circuits.pages.attention_view import pattern_view
from causal_circuits.pages.templates import PagePart
from causal_circuits.tasks import Batch


@check_arguments
def attention_view(
    model: HookedTransformer,
    batch: Batch,
    *,
    sequence: int = 0,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    title: str | None = None,
) -> PagePart:
    """Every head's attention on one sequence of a batch; it shows itself in a notebook, offline too.

    Args:
        sequence: which one, from 0.
        graph, names, roles, title: as in `sequence_view`.

    >>> task = cc.InContextTask(cc.chain_graph(4), d_vocab=3)
    >>> view = attention_view(cc.plant_circuit(task.graph, d_vocab=3), task.sample(8, seed=0), graph=task.graph)
    >>> "L0H0" in view, "L1H0" in view
    (True, True)
    """
    if not 0 <= sequence < len(batch):
        raise ValueError(f"the batch has the sequences 0 .. {len(batch) - 1}: got sequence {sequence}")
    return sequence_view(sequence_attention(model, batch.tokens[sequence]), graph, names, roles, title)


@check_arguments
def sequence_view(
    seen: SequenceAttention,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    title: str | None = None,
) -> PagePart:
    """Every head's attention on a sequence; where several steps were seen, a slider goes through them.

    Args:
        seen: from `sequence_attention`, or from a `SequenceRecorder` that watched a training.
        graph: names the query, and outlines its edges in the heads of layer 0 (in up to four heads); None takes the
            last token for the query.
        names: of the tokens, one for each of the vocabulary; None writes their numbers.
        roles: of the heads ("induction"), in the order of `seen.heads`.
        title: above the view; None writes the sequence.

    >>> model = cc.plant_circuit(cc.chain_graph(4), d_vocab=3)
    >>> sequence_view(sequence_attention(model, torch.tensor([0, 1, 2, 1])), cc.chain_graph(4)).count("query")
    2
    """
    if roles is not None and len(roles) != len(seen.heads):
        raise ValueError(f"roles must name each of the {len(seen.heads)} heads: got {len(roles)}")
    if graph is not None and len(seen.tokens) != n_ctx_of(graph):
        raise ValueError(
            f"graph and sequence must cover the same positions: {n_ctx_of(graph)} against {len(seen.tokens)}"
        )
    heads = [f"L{layer}H{head}" for layer, head in seen.heads]
    if roles is not None:
        heads = [f"{head} {role}" for head, role in zip(heads, roles, strict=True)]
    edges = [] if graph is None else attention_cells(graph)
    several = len(seen.steps) > 1
    return pattern_view(
        seen.attention if several else seen.attention[0],
        position_labels(seen.tokens, graph is None or graph_has_query(graph), names),
        heads,
        steps=seen.steps if several else None,
        title=f"Sequence {' '.join(position_labels(seen.tokens, False, names))}" if title is None else title,
        outlined={name: edges for name, (layer, _) in zip(heads, seen.heads, strict=True) if layer == 0},
    )


@check_arguments
def position_labels(
    tokens: Tensor | np.ndarray | Sequence[int], has_query: bool = True, names: Sequence[str] | None = None
) -> list[str]:
    """A label for each position of one sequence, its token; CircuitsVis adds the position.

    Args:
        tokens: [n_ctx], of one sequence.
        has_query: name the last position "query" (see `graphs.has_query`).
        names: of the tokens, one for each of the vocabulary; None writes their numbers.

    >>> position_labels([3, 0, 7])
    ['3', '0', 'query 7']
    >>> position_labels([0, 1, 0], has_query=False, names=["heads", "tails"])
    ['heads', 'tails', 'heads']
    """
    values = [int(token) for token in tokens]
    if names is not None and values and not 0 <= min(values) <= max(values) < len(names):
        raise ValueError(
            f"names must name every token of the vocabulary: got {len(names)} for tokens up to {max(values)}"
        )
    labels = [str(token) if names is None else names[token] for token in values]
    if has_query:
        labels[-1:] = [f"query {token}" for token in labels[-1:]]
    return labels
