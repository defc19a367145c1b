"""The structured forward: the same model without the one-hot multiplications.

In a disentangled residual stream every block is ``M [X | I]``: a mixing matrix M (a product of attention
patterns; the identity for the first block) applied to the tokens' one-hots X and to the positions' identity.
So nothing has to be copied. Write Q = (query residual) A, and cut it into blocks of a token half and a position
half. The score of key j through block M is

    sum_k M[j, k] r[k],      r[k] = Q.token[x_k] + Q.position[k],

and the last layer is needed for the last query alone. The result equals the plain TransformerLens forward in
logits and in every trainable gradient, and ``blocks.l.attn.hook_pattern`` is called with the same tensor, so hooks
there - reading, editing or backward - work as they do in the plain forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from causal_circuits.arguments import check_arguments
from causal_circuits.models.acceptance import has_hooks, takes_fast_forward
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.last_position import can_skip_positions, last_position_logits
from causal_circuits.models.layout import Layout, has_layout, layout_of
from causal_circuits.tasks.batch import Batch, check_tokens

SERVED_HOOK = "attn.hook_pattern"
PROBABILITY_FLOOR = 1e-9


_always_plain: ContextVar[bool] = ContextVar("always_plain", default=False)


@check_arguments
@contextmanager
def plain_forward() -> Iterator[None]:
    """Within the context every analysis and training takes TransformerLens's own forward, whatever the model.

    >>> with cc.models.plain_forward():
    ...     slow = cc.evaluate(model, batch)
    >>> bool((slow - cc.evaluate(model, batch)).abs().max() < 1e-4)
    True
    """
    before = _always_plain.set(True)
    try:
        yield
    finally:
        _always_plain.reset(before)


def always_plain() -> bool:
    """Whether the caller stands within `plain_forward`."""
    return _always_plain.get()


@check_arguments
def logits(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
    """The model's output at the last position, by the fastest forward that knows everything about the model.

    Models of ours take the structured forward, ordinary ones compute their last layer at the last position alone; if
    there is anything about the model that these do not know (`models.acceptance`: a hook on a point that they do not
    call, a parametrization, an edited frozen weight, another config field), the plain forward is taken. For the reduced
    model the output is a probability vector: see `log_probs`.

    >>> tuple(cc.models.logits(model, batch.tokens).shape)
    (64, 3)
    """
    check_tokens(tokens, model.cfg.d_vocab)
    return choose_forward(model)(model, tokens)


Forward = Callable[[HookedTransformer, Int[Tensor, "batch n_ctx"]], Float[Tensor, "batch *pos d_vocab"]]


def choose_forward(model: HookedTransformer, every_position: bool = False) -> Forward:
    """The forward that `logits` takes for a model as it is now; or one that answers at every position."""
    if every_position:
        is_structured = choose_forward(model) is structured_forward and layout_of(model).kind == "disentangled"
        return partial(structured_logits if is_structured else plain_logits, every_position=True)
    if always_plain() or torch.is_autocast_enabled(model.W_U.device.type):
        return plain_logits
    if has_layout(model):
        if not takes_fast_forward(model, lambda name: name.endswith(SERVED_HOOK)):
            return plain_logits
        is_structured = layout_of(model).kind == "disentangled" or has_only_a1_and_a2(model)
        return structured_forward if is_structured else plain_logits
    return last_position_logits if can_skip_positions(model) else plain_logits


def structured_forward(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
    """The output at the last position of a disentangled model, or of a reduced one with nothing but A1 and A2."""
    return (structured_logits if layout_of(model).kind == "disentangled" else reduced_probs)(model, tokens)


def plain_logits(
    model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"], every_position: bool = False
) -> Float[Tensor, "batch *pos d_vocab"]:
    """The model's output at the last position, or at every one, by TransformerLens's own forward."""
    output = model(tokens, return_type="logits")
    return output if every_position else output[:, -1]


@check_arguments
def log_probs(
    model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"], every_position: bool = False
) -> Float[Tensor, "batch d_vocab"] | Float[Tensor, "batch n_ctx d_vocab"]:
    """The log of the model's prediction: log softmax of logits, or log(f + 1e-9) if reduced.

    At the last position, or at every one.

    >>> log_probs = cc.log_probs(model, batch.tokens)
    >>> bool(log_probs.exp().sum(dim=1).allclose(log_probs.new_ones(64)))
    True
    """
    check_tokens(tokens, model.cfg.d_vocab)
    return as_log_probs(model, choose_forward(model, every_position)(model, tokens))


def as_log_probs(model: HookedTransformer, output: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row d_vocab"]:
    """What a forward gave as log-probabilities; a reduced model gives probabilities already."""
    if has_layout(model) and layout_of(model).kind == "reduced":
        return (output + PROBABILITY_FLOOR).log()
    return output.log_softmax(dim=-1)


@torch.enable_grad()
def autograd_step(model: HookedTransformer, batch: Batch, forward: Forward) -> float:
    """Set the gradient of the mean loss on a batch by autograd through a forward; return the loss."""
    with torch.inference_mode(False):
        batch = usable_for_gradients(batch)
        model.zero_grad(set_to_none=True)
        log_predictions = as_log_probs(model, forward(model, batch.tokens))
        loss = -(batch.target_probs * log_predictions).sum(dim=-1).mean()
        if not loss.requires_grad:
            raise ValueError(
                "no parameter bears on the loss: the model's patterns are given, or its weights frozen, where it would "
                "learn; give fewer patterns, or requires_grad=True"
            )
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return float(loss.detach())


def usable_for_gradients(batch: Batch) -> Batch:
    """The batch, copied if it was made in inference mode; called outside of it."""
    if not batch.tokens.is_inference() and not batch.target_probs.is_inference():
        return batch
    return Batch(batch.tokens.clone(), batch.target_probs.clone())


@check_arguments
def structured_logits(
    model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"], every_position: bool = False
) -> Float[Tensor, "batch *pos d_vocab"]:
    """Logits of a disentangled transformer at the last position, or at every one (how: `models/structured.py`).

    >>> plain = model(batch.tokens)[:, -1]
    >>> bool((cc.models.structured_logits(model, batch.tokens) - plain).abs().max() < 1e-4)
    True
    """
    layout = layout_of(model)
    _check_tokens(layout, tokens)
    queries = slice(0 if every_position else layout.n_ctx - 1, None)  # no other row of the last layer is formed
    n_queries = layout.n_ctx - queries.start
    one_hot = torch.nn.functional.one_hot(tokens, layout.d_vocab).to(model.W_U.dtype)
    mixing: list[Tensor | None] = [None]  # one [batch, n_ctx, n_ctx] a block; None is the identity
    rows = [torch.eye(layout.n_ctx).to(one_hot)[queries].expand(len(tokens), -1, -1)]
    for layer in range(layout.n_layers):
        is_last = layer == layout.n_layers - 1
        pattern = _pattern(model, layer, tokens, one_hot, mixing, queries if is_last else slice(None))
        heads = pattern.unbind(dim=1)[: layout.n_heads[layer]]
        rows += [_compose(head[:, -n_queries:], mix) for head in heads for mix in mixing]
        if not is_last:
            mixing += [_compose(head, mix) for head in heads for mix in mixing]
    residual = torch.cat([half for row in rows for half in (row @ one_hot, row)], dim=-1)
    output = residual @ model.unembed.W_U + model.unembed.b_U
    return output if every_position else output[:, 0]


def reduced_probs(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
    """The reduced model's f = X^T softmax( softmax(mask A1) X A2^T x_T ), by look-ups and one product.

    Layer 1's pattern is the same for every sequence, so the score of key j is sum_k P[j, k] A2[x_T, x_k]: one row
    times one matrix a sequence, n_ctx times less work than copying tokens first. Only A1 and A2 get gradients.
    """
    layout, (first, second) = layout_of(model), (block.attn for block in model.blocks)
    _check_tokens(layout, tokens)
    if layout.n_heads[0] > 1:
        raise ValueError(f"the structured forward knows one copying head: this reduced model has {layout.n_heads[0]}")
    a1, a2 = _a1_and_a2(model)
    pattern = torch.softmax(apply_causal_mask(a1[None, None]), dim=-1)
    if not any(has_hooks(attn.hook_pattern) for attn in (first, second)):
        reach = embedding(tokens[:, -1], a2).gather(1, tokens)
        last = torch.softmax(reach @ pattern[0, 0].T, dim=-1)
    else:
        pattern = first.hook_pattern(pattern.repeat(len(tokens), 1, 1, 1))
        one_hot = torch.nn.functional.one_hot(tokens, layout.d_vocab).to(a1.dtype)
        scores = embedding(tokens, a2) @ (pattern[:, 0] @ one_hot).mT
        last = second.hook_pattern(torch.softmax(apply_causal_mask(scores[:, None]), dim=-1))[:, 0, -1]
    return torch.zeros(len(tokens), layout.d_vocab, dtype=a1.dtype, device=a1.device).scatter_add(1, tokens, last)


def _a1_and_a2(model: HookedTransformer) -> tuple[Tensor, Tensor]:
    """The two blocks of the reduced model: A1 [n_ctx, n_ctx] and A2 [d_vocab, d_vocab]."""
    layout = layout_of(model)
    named, first, second = layout.slots(), model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q
    return first[0, named["position"].slice, : layout.n_ctx], second[0, named["token"].slice, : layout.d_vocab]


@torch.no_grad()
def has_only_a1_and_a2(model: HookedTransformer) -> bool:
    """Whether layer 0 has one head and nothing else of the reduced model's query weights has been written to."""
    if layout_of(model).n_heads[0] > 1:
        return False
    blocks, whole = _a1_and_a2(model), [block.attn.W_Q for block in model.blocks]
    return all(int(a.count_nonzero()) == int(w.count_nonzero()) for a, w in zip(blocks, whole, strict=True))


def _pattern(
    model: HookedTransformer, layer: int, tokens: Tensor, one_hot: Tensor, mixing: list[Tensor | None], queries: slice
) -> Float[Tensor, "batch head_index query_pos key_pos"]:
    """The attention pattern of a layer, through its HookPoint; of the given queries only, unless somebody looks."""
    layout, attn = layout_of(model), model.blocks[layer].attn
    watched = has_hooks(attn.hook_pattern)
    queries = slice(None) if watched else queries
    scores = [
        _scores(layout, attn.W_Q[head, : layout.width(layer), : layout.width(layer)], tokens, one_hot, mixing, queries)
        for head in range(layout.n_heads[layer])
    ]
    if watched:  # dead heads attend uniformly in the plain forward
        scores += [torch.zeros_like(scores[0])] * (model.cfg.n_heads - len(scores))
    return attn.hook_pattern(torch.softmax(apply_causal_mask(torch.stack(scores, dim=1)), dim=-1))


def _scores(
    layout: Layout, weights: Tensor, tokens: Tensor, one_hot: Tensor, mixing: list[Tensor | None], queries: slice
) -> Float[Tensor, "batch query_pos key_pos"]:
    """Attention scores h A h^T of one head for a range of queries, without forming h."""
    d_vocab, d_block = layout.d_vocab, layout.d_block
    query = embedding(tokens[:, queries], weights[:d_vocab]) + weights[d_vocab:d_block][queries]
    rows = [half for mix in mixing[1:] if mix is not None for half in (mix[:, queries] @ one_hot, mix[:, queries])]
    if rows:
        query = query + torch.cat(rows, dim=-1) @ weights[d_block:]
    scores: Tensor | None = None
    for block, mix in enumerate(mixing):
        part = query[..., block * d_block : (block + 1) * d_block]
        reach = part[..., :d_vocab] @ one_hot.mT + part[..., d_vocab:]
        through = reach if mix is None else reach @ mix.mT
        scores = through if scores is None else scores + through
    assert scores is not None
    return scores


def apply_causal_mask(scores: Float[Tensor, "*batch query_pos key_pos"]) -> Float[Tensor, "*batch query_pos key_pos"]:
    """Minus infinity at keys behind the query; a single row is the last query, which sees everything."""
    n_queries, n_keys = scores.shape[-2:]
    if n_queries == 1:
        return scores
    future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -torch.inf)


def _compose(rows: Float[Tensor, "batch query n_ctx"], mix: Tensor | None) -> Float[Tensor, "batch query n_ctx"]:
    return rows if mix is None else rows @ mix


def _check_tokens(layout: Layout, tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.shape[1] != layout.n_ctx:
        raise ValueError(f"tokens must be [batch, n_ctx={layout.n_ctx}]: got {list(tokens.shape)}")
