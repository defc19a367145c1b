"""Classical structure learning on pooled tokens, for comparison: pairwise mutual information and the Chow-Liu tree.

Both see one table of tokens, a row a sequence, and know nothing of prompts. With one transition matrix behind all
sequences the data processing inequality holds and they find the edges; with a fresh one in every sequence all positions
of a prompt share it as a hidden common cause, and the inequality says nothing about the pooled law.
"""

import networkx as nx
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.tasks.batch import check_tokens


@check_arguments
def pooled_mutual_information(tokens: Int[Tensor, "batch n_ctx"], d_vocab: int) -> Float[np.ndarray, "n_ctx n_ctx"]:
    """The plug-in mutual information of every pair of positions, in nats; symmetric, entropies on the diagonal.

    sum_{a, b} P(a, b) log( P(a, b) / (P(a) P(b)) ) with empirical frequencies over sequences. It is biased upwards by
    about (d_vocab - 1)^2 / (2 batch); `2 batch` times the value is the G statistic.

    >>> pooled_mutual_information(torch.tensor([[0, 0], [1, 1]]), d_vocab=2).round(3).tolist()
    [[0.693, 0.693], [0.693, 0.693]]
    """
    check_tokens(tokens, d_vocab)
    n = len(tokens)
    one_hot = torch.nn.functional.one_hot(tokens.cpu(), d_vocab).float().flatten(1)
    counts = (one_hot.T @ one_hot).double()  # whole numbers: exact in float32 below 2^24 sequences
    joint = rearrange(counts, "(i a) (j b) -> i j a b", a=d_vocab, b=d_vocab).numpy() / n
    margin = np.diagonal(joint, axis1=0, axis2=1).diagonal(axis1=0, axis2=1)  # [n_ctx, d_vocab]
    independent = margin[:, None, :, None] * margin[None, :, None, :]
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log(ratio)).sum(axis=(2, 3))


@check_arguments
def chow_liu_tree(information: Float[np.ndarray, "n_ctx n_ctx"]) -> nx.DiGraph:
    """The Chow-Liu tree: the spanning tree with the largest total mutual information, edges pointing forward.

    Chow & Liu (1968): among all tree-shaped laws it is the one of largest likelihood. A tree over n positions has
    n - 1 edges whatever the truth, so on a forest it must draw false ones.

    >>> sorted(chow_liu_tree(np.array([[0, 0.5, 0.3], [0.5, 0, 0.4], [0.3, 0.4, 0]])).edges)
    [(0, 1), (1, 2)]
    """
    if not np.isfinite(information).all() or not np.allclose(information, information.T):
        raise ValueError(
            "a Chow-Liu tree needs a finite symmetric matrix of mutual information: add the transpose to half"
        )
    weighted = nx.complete_graph(len(information))
    for j, i in weighted.edges:
        weighted.edges[j, i]["weight"] = float(information[i, j])
    tree = nx.DiGraph()
    tree.add_nodes_from(weighted)
    tree.add_edges_from((min(edge), max(edge)) for edge in nx.maximum_spanning_tree(weighted).edges)
    return tree
