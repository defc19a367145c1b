"""Hold scores of attention entries to the latent graph, which is known because the sequences were drawn from it.

Every entry (i, j) of layer 0 is an edge of the graph or it is not. A model may predict well by other entries (a
*decoy*), so a low loss does not say that the entries of the graph are what it uses; these numbers do.
"""

from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.graphs import edge_entries, n_ctx_of
from causal_circuits.statistics import auroc


@check_arguments
@dataclass(frozen=True, repr=False)
class GraphScores(Result):
    """How well scores of entries tell the edges of the graph from all other entries.

    Attributes:
        auroc: the probability that an edge scores above another entry, ties counting half.
        auprc: the area under precision against recall: the average precision over edges, ties taken as a block.
        shd: structural Hamming distance between the graph and the one drawn from as many top-scoring entries as there
            are edges: missing and false ones together; half of a tie at the cut-off counts by its share.
        exact_parent_rate: the share of rows with parents whose k parents are the row's k highest scores, without a tie.
        auroc_children: the AUROC over rows with parents alone; in a root's row a trained model may use entries that are
            no edges, because a root's token tells about the transition matrix too.
        n_edges: edges.

    >>> score_against_graph(torch.ones(4, 4), cc.chain_graph(4)).auroc  # all the same: a toss-up
    0.5
    """

    auroc: float
    auprc: float
    shd: float
    exact_parent_rate: float
    auroc_children: float
    n_edges: int


@check_arguments
def score_against_graph(
    score: Float[Tensor, "head_index query_pos key_pos"] | Float[Tensor, "query_pos key_pos"], graph: nx.DiGraph
) -> GraphScores:
    """Hold scores of layer 0's entries to the graph; several heads count by their largest score.

    The entries are those a layer could need: all causal ones, less the query's row where there is a query, which no
    edge constrains. Without a query the last row stands for the target's parents (`attention_cells`).

    Which effects to score depends on the question. By "loss" an entry matters if it is of *use*; that is what tells a
    trained model's edges from the entries in roots' rows, but an effect has a sampling error: a planted chain's edge at
    n_ctx 20 costs 0.003 nats, which over 1,024 sequences is one to two standard errors, so that some edge's effect may
    come out negative; take 4,096 or more. By "kl_to_model" an entry matters if it is *used*: the effect is at least
    zero on every sequence, and zero if nothing moves, so that no sampling error puts an unused entry above a used one.

    Raises:
        ValueError: scores over other positions than the graph's, or NaN among them.

    >>> score_against_graph(torch.diag(torch.ones(3), -1), cc.chain_graph(4))
    GraphScores(auroc=1.0, auprc=1.0, shd=0.0, exact_parent_rate=1.0, auroc_children=1.0, n_edges=2)
    """
    best = score.amax(dim=0) if score.ndim == 3 else score
    is_edge, counted = (torch.from_numpy(entries) for entries in edge_entries(graph))
    if best.shape != is_edge.shape:
        raise ValueError(
            f"scores and graph must cover the same positions: {list(best.shape)} against n_ctx {n_ctx_of(graph)}"
        )
    if bool(best[counted].isnan().any()):
        raise ValueError("every entry must have a score: found NaN; score all of a layer's entries, not a choice")
    if not bool((is_edge & counted).any()):
        raise ValueError("the graph has no edge between context positions: there is nothing to tell apart")
    values, truth = best[counted].double().numpy(), is_edge[counted].numpy()
    with_parents = counted & is_edge.any(dim=1, keepdim=True)
    rows = with_parents.any(dim=1).nonzero()[:, 0].tolist()
    return GraphScores(
        auroc=auroc(values, truth),
        auprc=average_precision(values, truth),
        shd=_hamming_distance(values, truth),
        exact_parent_rate=float(np.mean([_is_exact(best[row, : row + 1], is_edge[row, : row + 1]) for row in rows])),
        auroc_children=auroc(best[with_parents].double().numpy(), is_edge[with_parents].numpy()),
        n_edges=int(truth.sum()),
    )


def average_precision(values: Float[np.ndarray, " entry"], truth: Bool[np.ndarray, " entry"]) -> float:
    """Precision averaged over true entries, from the highest score down, ties in one step; NaN if a score is."""
    if np.isnan(values).any():
        return float("nan")
    order = np.argsort(-values)
    last_of_tie = np.append(np.diff(values[order]) != 0, True)
    hits, taken = truth[order].cumsum()[last_of_tie], np.arange(1, len(values) + 1)[last_of_tie]
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / truth.sum())


def _hamming_distance(values: np.ndarray, truth: np.ndarray) -> float:
    """Edges missing and false when as many entries are drawn as there are edges; a tie at the cut-off by its share."""
    n_edges = int(truth.sum())
    cut_off = np.sort(values)[-n_edges]
    above, tied = values > cut_off, values == cut_off
    hits = truth[above].sum() + (n_edges - above.sum()) * truth[tied].mean()
    return float(2 * (n_edges - hits))


def _is_exact(row: Tensor, is_edge: Tensor) -> bool:
    """Whether the k parents of a row are its k highest scores."""
    others = row[~is_edge]
    return not len(others) or bool(row[is_edge].min() > others.max())
