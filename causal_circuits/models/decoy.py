"""A decoy: a model that predicts as well as the graph's circuit, with none of the graph's edges in layer 0.

In `plant_circuit` row i of layer 0 reads the parents of position i, and layer 1 reports the token at i. But any later
row can do that for it: row c > i reads the parents of i with k heads, and i itself with one more; layer 1 matches the
former and reports the latter. The prediction is the same, and no attention entry (i, parent of i) is used.
"""

import networkx as nx
import torch

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs import has_query, n_ctx_of, parents_of, validate_graph
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.build import attention_block, disentangled_transformer, match_blocks
from causal_circuits.models.layout import layout_of, note_origin


@check_arguments
def plant_decoy(
    graph: nx.DiGraph,
    d_vocab: int = 10,
    *,
    attention_scale: float = 20.0,
    match_scale: float = 20.0,
    readout_scale: float = 3.0,
) -> HookedTransformer:
    """A model with the circuit of a graph displaced: the same predictions, no more attention to a parent than uniform.

    As many children as possible get a row of their own that carries them (`carriers`); the others, at the end of the
    context, are lost: one of a chain's children, none of a pairs graph's. The other rows attend uniformly: trained on
    from here (`TrainConfig.joint(..., warm_start=None)`) a model learns what else there is to learn and stays a decoy.

    Args:
        graph: any causal graph; k parents take k + 1 heads in layer 0.
        d_vocab: tokens.
        attention_scale, match_scale, readout_scale: as in `plant_circuit`.

    Raises:
        ValueError: no child has a row that could carry it.

    >>> model = plant_decoy(cc.graphs.pairs_graph(6), d_vocab=2)
    >>> [head.softmax(dim=-1).argmax(dim=-1)[2].item() for head in model.blocks[0].attn.W_Q[:, 2:8, 2:8]]  # row 2: 0, 1
    [0, 1]
    """
    validate_graph(graph)
    carried, n_ctx = carriers(graph), n_ctx_of(graph)
    if not carried:
        raise ValueError(
            "a decoy needs a child whose parents a later row may read without reading its own: this graph has none; "
            "make it longer"
        )
    asked = parents_of(graph, n_ctx)
    k = len(asked)
    model = disentangled_transformer(d_vocab, n_ctx, (k + 1, 1))
    read = {row: (*parents_of(graph, child), child) for child, row in carried.items()}
    if not has_query(graph):
        read[n_ctx - 1] = asked
    for row, positions in read.items():
        for head, position in enumerate(positions):
            attention_block(model, 0, head, "position", "position").data[row, position] = attention_scale
    identity = torch.eye(d_vocab)
    for head in range(k):
        for block in match_blocks(model, head, by_copy=not has_query(graph)):
            block.copy_(match_scale * identity)
    idle = [row for row in range(n_ctx) if row not in carried.values()]
    attention_block(model, 1, 0, "position", "position").data[-1, idle] = -match_scale * (k + 1)
    reported = layout_of(model).slots()[f"L1H0.L0H{k}.token"].slice
    model.unembed.W_U.data[reported] = readout_scale * identity
    note_origin(model, "plant_decoy")
    return model


def carriers(graph: nx.DiGraph) -> dict[int, int]:
    """For as many children i as possible a row c(i) > i of their own in which neither i nor its parents are parents.

    Only children with as many parents as the target count: layer 1 matches no others. A maximum matching.

    >>> carriers(cc.graphs.pairs_graph(6)), len(carriers(cc.graphs.chain_graph(20)))
    ({1: 2, 3: 4}, 17)
    """
    n_ctx, n_parents = n_ctx_of(graph), len(parents_of(graph, n_ctx_of(graph)))
    children = [i for i in range(n_ctx) if graph.in_degree(i) == n_parents]
    rows = range(n_ctx if has_query(graph) else n_ctx - 1)  # without a query the last row reads the target's parents
    allowed = nx.Graph()  # child i is node i, row r node n_ctx + r: sets of whole numbers have one order in any process
    allowed.add_nodes_from(children)
    for i in children:
        read = {i, *parents_of(graph, i)}
        free = [row for row in rows if row > i and not read & set(parents_of(graph, row))]
        allowed.add_edges_from((i, n_ctx + row) for row in free)
    matched = nx.bipartite.maximum_matching(allowed, top_nodes=children)
    return {i: matched[i] - n_ctx for i in children if i in matched}
