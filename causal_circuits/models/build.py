"""Disentangled transformers as plain HookedTransformers: empty, warm, and with a circuit written by hand.

The paper's A^(l)_h is the model's ``W_Q[l, h]`` and the paper's W_O^T is its ``W_U``: everything else is a
frozen copy of the identity that puts the right thing into the right slot.
"""

from collections.abc import Sequence

import networkx as nx
import torch
from torch import Tensor

from causal_circuits.arguments import Count, Several, check_arguments
from causal_circuits.graphs import has_query, n_ctx_of, parents_of, validate_graph
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.layout import Layout, frozen_identities, has_layout, layout_of, note_origin


@check_arguments
def disentangled_transformer(
    d_vocab: Several = 10,
    n_ctx: Several = 20,
    n_heads: Sequence[Count] = (1, 1),
    *,
    init_scale: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> HookedTransformer:
    """A disentangled transformer (section 2 of the paper) as a HookedTransformer.

    Args:
        d_vocab: tokens, at least 2.
        n_ctx: context positions, at least 2.
        n_heads: heads of each layer; layers with fewer than the maximum carry dead (zero, frozen) heads,
            because a HookedTransformerConfig has one number of heads.
        init_scale: standard deviation of normal initial values of A and W_U; 0 is the paper's start.
        seed: of those initial values.
        dtype, device: of the parameters.

    Returns:
        A model whose only trainable parameters are ``blocks.l.attn.W_Q`` and ``unembed.W_U``.

    >>> model = disentangled_transformer(d_vocab=3, n_ctx=4)
    >>> model(torch.tensor([[0, 1, 2, 0]])).shape
    torch.Size([1, 4, 3])
    """
    if not n_heads:
        raise ValueError("n_heads must list at least one head for each layer, such as (1, 1): got ()")
    layout = Layout("disentangled", d_vocab, n_ctx, tuple(n_heads))
    model = _frozen_transformer(layout, dtype=dtype, device=device)
    if init_scale:
        _randomize(model, layout, init_scale, seed)
    return model


@check_arguments
def reduced_transformer(
    d_vocab: Several = 10,
    n_ctx: Several = 20,
    n_heads: Sequence[Count] = (1, 1),
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> HookedTransformer:
    """The paper's reduced model (section 4): A1 over positions, A2 over tokens, a probability vector as output.

    f = X^T softmax( softmax(mask A1) X A2^T x_T ). Its ``W_Q[0]`` holds A1 in the position slot and ``W_Q[1]`` holds
    A2^T's transpose, A2, in the token slot; what it returns in place of logits *is* f, so use
    `causal_circuits.models.log_probs` for its predictions. Only these two blocks are trained.

    With k heads in layer 0 (``n_heads=(k, 1)``) each has its own A1, and since the last row holds the target's parents,
    head h's copy at the key is compared with its copy at the query:

        f = X^T softmax( sum_h z_h A2_h^T z_h,T ),      z_h = softmax(mask A1_h) X;

    A2_h is ``W_Q[1, 0]`` from slot L0Hh.token to the coordinates d_vocab h .. d_vocab (h + 1) - 1.

    >>> reduced_transformer(d_vocab=3, n_ctx=4)(torch.tensor([[0, 1, 2, 0]]))[0, -1].sum().item()
    1.0
    """
    if len(n_heads) != 2 or n_heads[1] != 1:
        raise ValueError(f"a reduced model has one head in layer 1, n_heads = (k, 1): got {tuple(n_heads)}")
    layout = Layout("reduced", d_vocab, n_ctx, tuple(n_heads))
    return _frozen_transformer(layout, dtype=dtype, device=device)


@check_arguments
def warm_start(model: HookedTransformer, scale: float = 2.0) -> HookedTransformer:
    """Give layer 1 the match and the read-out that layer 0's gradient needs, in place; returns the model.

    ``W_Q[1]`` gets `scale` x identity from the query's token to the token that each head of layer 0 copied (with
    several heads: head by head, between the copies on both sides), and W_U gets it from the last layer's attended
    token. In the reduced model it is A2 = scale I (beta0 of Algorithm 1).

    >>> model = cc.models.warm_start(cc.reduced_transformer(d_vocab=3, n_ctx=6), scale=2.0)
    >>> int((model.W_Q[1] == 2.0).sum())  # A2 = 2 I
    3
    """
    layout = layout_of(model)
    if layout.n_layers != 2:
        raise ValueError(
            f"warm_start is defined for two layers: this model has {layout.n_layers}; train with warm_start=None"
        )
    identity = scale * torch.eye(layout.d_vocab, dtype=model.W_U.dtype, device=model.W_U.device)
    for copier in range(layout.n_heads[0]):
        for block in match_blocks(model, copier):
            block.copy_(identity)
    return model if layout.kind == "reduced" else warm_readout(model, scale)


@check_arguments
def match_blocks(model: HookedTransformer, copier: int, *, by_copy: bool | None = None) -> list[Tensor]:
    """Where layer 1 compares what head `copier` of layer 0 copied to the query with what it copied to the keys.

    Views into ``W_Q[1]``, [d_vocab, d_vocab], one for each head of layer 1. With one copying head the query's own
    token is compared, as in the paper; with several it is the copy, because the last row holds the target's parents.
    `by_copy` decides otherwise.

    >>> [tuple(block.shape) for block in match_blocks(cc.disentangled_transformer(3, 6), copier=0, by_copy=False)]
    [(3, 3)]
    """
    layout, named = layout_of(model), layout_of(model).slots()
    key = named[f"L0H{copier}.token"].slice
    compare_copies = layout.n_heads[0] > 1 if by_copy is None else by_copy
    query = key if compare_copies else named["token"].slice
    if layout.kind == "reduced":
        key = slice(copier * layout.d_vocab, (copier + 1) * layout.d_vocab)
    return [model.blocks[1].attn.W_Q.data[head, query, key] for head in range(layout.n_heads[1])]


@check_arguments
def warm_readout(model: HookedTransformer, scale: float) -> HookedTransformer:
    """Let W_U read the token that the last layer attends to, `scale` logits in all, in place; returns the model.

    >>> model = warm_readout(cc.disentangled_transformer(3, 6), scale=2.0)
    >>> float(model.W_U.detach().sum())  # 2 logits for each of 3 tokens
    6.0
    """
    layout, named = layout_of(model), layout_of(model).slots()
    identity = scale * torch.eye(layout.d_vocab, dtype=model.W_U.dtype, device=model.W_U.device)
    for head in range(layout.n_heads[1]):
        model.unembed.W_U.data[named[f"L1H{head}.token"].slice] = identity / layout.n_heads[1]
    return model


@check_arguments
def plant_circuit(
    graph: nx.DiGraph,
    d_vocab: int = 10,
    *,
    attention_scale: float = 20.0,
    match_scale: float = 20.0,
    readout_scale: float = 3.0,
    n_heads: Sequence[int] | None = None,
) -> HookedTransformer:
    """A model whose circuit is written by hand: the answer every analysis is tested against.

    Head h of layer 0 attends from each position to its parent number h (from a position without one, to itself);
    the last row attends to the target's parents. Head 0 of layer 1 attends from the query to the positions whose
    copied tokens equal the query's, positions with another number of parents than the target left out, and
    W_U reads the attended token.

    Args:
        graph: any causal graph; k parents need k heads in layer 0.
        d_vocab: tokens.
        attention_scale: query-key weight from a position to its parent (20: attention 1 - 4e-8 at n_ctx 20).
        match_scale: weight of one matching token in layer 1.
        readout_scale: logits a unit of attended token frequency.
        n_heads: more heads than needed may be asked for; the others stay empty.

    >>> model = cc.plant_circuit(cc.pairs_graph(6), d_vocab=3)
    >>> cc.mean_attention(model, torch.zeros(1, 6, dtype=torch.int64))[0, 0, 3, 2] > 0.999
    tensor(True)
    """
    validate_graph(graph)
    n_ctx, target_parents = n_ctx_of(graph), parents_of(graph, n_ctx_of(graph))
    needed = max(graph.in_degree(node) for node in graph)
    heads = tuple(n_heads) if n_heads is not None else (needed, 1)
    if len(heads) != 2 or heads[0] < needed or heads[1] < 1:
        raise ValueError(f"this graph's circuit needs n_heads of at least ({needed}, 1): got {heads}")
    model = disentangled_transformer(d_vocab, n_ctx, heads)
    named, (first, second) = layout_of(model).slots(), (model.blocks[0].attn.W_Q.data, model.blocks[1].attn.W_Q.data)
    position = named["position"].slice
    for head in range(needed):
        rows = [parents_of(graph, i) for i in range(n_ctx - 1)] + [target_parents]
        looked_at = [parents[head] if head < len(parents) else i for i, parents in enumerate(rows)]
        first[head, position, position][torch.arange(n_ctx), torch.tensor(looked_at)] = attention_scale
    identity = torch.eye(d_vocab)
    for head in range(len(target_parents)):
        asked = named["token"] if has_query(graph) else named[f"L0H{head}.token"]
        second[0, asked.slice, named[f"L0H{head}.token"].slice] = match_scale * identity
    left_out = [i for i in range(n_ctx) if i == n_ctx - 1 or graph.in_degree(i) != len(target_parents)]
    second[0, position.start + n_ctx - 1, [position.start + i for i in left_out]] = -match_scale * (needed + 1)
    model.unembed.W_U.data[named["L1H0.token"].slice] = readout_scale * identity
    note_origin(model, "plant_circuit")
    return model


@check_arguments
def attention_block(model: HookedTransformer, layer: int, head: int, query_slot: str, key_slot: str) -> Tensor:
    """The block of A^(layer)_head between two named slots: a view, [query slot size, key slot size].

    >>> model = plant_circuit(nx.DiGraph([(0, 1), (2, 3)]), d_vocab=2)
    >>> attention_block(model, 0, 0, "position", "position").detach()
    tensor([[20.,  0.,  0.],
            [20.,  0.,  0.],
            [ 0.,  0., 20.]])
    """
    layout, named = layout_of(model), layout_of(model).slots()
    for slot in (query_slot, key_slot):
        if slot not in named:
            raise ValueError(f"no slot {slot!r} in this model; it has {', '.join(named)}")
    check_head(model, layer, head)
    if layout.kind == "reduced":
        raise ValueError(
            "the reduced model's A1 and A2 are W_Q[0, 0] and W_Q[1, 0] themselves: they have no slot pairs"
        )
    return model.blocks[layer].attn.W_Q[head, named[query_slot].slice, named[key_slot].slice]


@check_arguments
def live_heads(model: HookedTransformer) -> list[tuple[int, int]]:
    """(layer, head) of every head, the dead ones that only pad a layer left out.

    >>> cc.models.live_heads(cc.disentangled_transformer(3, 6, n_heads=(2, 1)))
    [(0, 0), (0, 1), (1, 0)]
    """
    n_heads = getattr(getattr(model, "causal_circuits_layout", None), "n_heads", None)
    if n_heads is None:
        n_heads = (model.cfg.n_heads,) * model.cfg.n_layers
    return [(layer, head) for layer, heads in enumerate(n_heads) for head in range(heads)]


@check_arguments
def check_head(model: HookedTransformer, layer: int, head: int) -> None:
    """Raise a ValueError unless the model has this head.

    >>> check_head(cc.disentangled_transformer(3, 6), 0, 0)
    """
    if (layer, head) not in live_heads(model):
        raise ValueError(
            f"the model has no head {head} in layer {layer}: its heads (layer, head) are {live_heads(model)}"
        )


@check_arguments
def check_model(model: HookedTransformer, d_vocab: int, n_ctx: int) -> None:
    """Raise a ValueError unless sequences of this kind fit the model and its weights are numbers.

    >>> check_model(cc.disentangled_transformer(3, 6), d_vocab=3, n_ctx=6)
    """
    fits = n_ctx == model.cfg.n_ctx if has_layout(model) else n_ctx <= model.cfg.n_ctx
    if d_vocab != model.cfg.d_vocab or not fits:
        raise ValueError(
            f"the model must take the sequences' (d_vocab, n_ctx) = {(d_vocab, n_ctx)}: "
            f"it was built for {(model.cfg.d_vocab, model.cfg.n_ctx)}"
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"the model's weights must be finite: {name} holds NaN or infinity; train or load it again"
            )


def _frozen_transformer(layout: Layout, dtype: torch.dtype, device: torch.device | str) -> HookedTransformer:
    """A HookedTransformer of the layout's sizes: the frozen weights hold their identity blocks, all else is zero."""
    config = {
        "n_layers": layout.n_layers,
        "d_model": layout.width(layout.n_layers),
        "n_ctx": layout.n_ctx,
        "d_head": layout.d_head,
        "n_heads": max(layout.n_heads),
        "d_vocab": layout.d_vocab,
        "attn_only": True,
        "normalization_type": None,
        "use_attn_scale": False,
        "init_weights": False,
        "default_prepend_bos": False,
        "dtype": dtype,
        "device": str(device),
    }
    from causal_circuits.models.hooked import build_transformer  # imports TransformerLens

    if layout.kind == "reduced":
        from causal_circuits.models.reduced import ReducedTransformer

        model = build_transformer(config, ReducedTransformer)
    else:
        model = build_transformer(config)
    model.causal_circuits_layout = layout
    identities = frozen_identities(layout)
    for name, parameter in model.named_parameters():
        for block in identities.get(name, ()):
            parameter.data[block].fill_diagonal_(1.0)
        parameter.requires_grad_(name not in identities)
    if layout.kind == "reduced":
        model.mask_gradients()
    return model


def _randomize(model: HookedTransformer, layout: Layout, scale: float, seed: int) -> None:
    """Normal values in every trained entry that means something: live heads' A, and W_U."""
    generator, dtype = torch.Generator().manual_seed(seed), model.W_U.dtype
    for layer, heads in enumerate(layout.n_heads):
        width = layout.width(layer)
        for head in range(heads):
            weights = scale * torch.randn(width, width, generator=generator, dtype=dtype)
            model.blocks[layer].attn.W_Q.data[head, :width, :width] = weights
    model.unembed.W_U.data.copy_(scale * torch.randn(model.W_U.shape, generator=generator, dtype=dtype))
