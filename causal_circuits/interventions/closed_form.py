"""What the model predicts when one row of a layer's attention changes, without running the model again.

Adding d to row i of layer 0's pattern changes one thing that layer 1 reads: block h of position i, by

    u = d h0 = [d X | d]                                                        (one vector of width d_block)

So key i's score changes by q_h . u, where q_h is block h of q = h1[T] A: a rank-one change. The value that layer 1
reads at i changes by u too. Only the last row (i = T) is also the query: there q itself changes by u A[block h].
In the last layer itself the prediction depends on the last row alone, and is linear in it.

With V = h1 W_U[slots of layer 1's head] (the values already read out) the prediction needs n_ctx numbers and d_vocab
sums for each entry and sequence, where a forward pass needs thousands.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.models import HookedTransformer, has_layout, layout_of, log_probs
from causal_circuits.models.acceptance import takes_fast_forward


def has_closed_form(model: HookedTransformer) -> bool:
    """Whether the closed form applies to a model: disentangled, two layers, nothing foreign (`models.acceptance`)."""
    if not has_layout(model) or layout_of(model).kind != "disentangled" or layout_of(model).n_layers != 2:
        return False
    return takes_fast_forward(model)


class ChangedRows:
    """A model for which `has_closed_form` holds, on some sequences, ready to answer for changed rows of attention."""

    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> None:
        self.layout, width = layout_of(model), layout_of(model).width(1)
        one_hot = torch.nn.functional.one_hot(tokens, self.layout.d_vocab).to(model.W_U.dtype)
        names = repeat(torch.eye(self.layout.n_ctx).to(one_hot), "pos name -> batch pos name", batch=len(tokens))
        self.embedding = torch.cat([one_hot, names], dim=-1)
        patterns: list[Tensor] = []
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda pattern, hook: patterns.append(pattern))]):
            log_probs(model, tokens)
        copied = patterns[0][:, : self.layout.n_heads[0]] @ self.embedding[:, None]
        copies = rearrange(copied, "batch head pos d_block -> batch pos (head d_block)")
        self.residual = torch.cat([self.embedding, copies], dim=-1)  # what layer 1 reads
        self.attention = list(model.blocks[1].attn.W_Q.detach()[: self.layout.n_heads[1], :width, :width])
        direct, *self.readout = model.W_U.detach()[: width * (1 + len(self.attention))].split(width)
        self.direct_readout, self.direct = direct, self.residual[:, -1] @ direct + model.b_U.detach()
        self.queries = [self.residual[:, -1] @ attention for attention in self.attention]
        self.scores = [torch.einsum("bd,bkd->bk", query, self.residual) for query in self.queries]
        self.values = [self.residual @ readout for readout in self.readout]

    def log_probs(
        self, layer: int, head: int, row: int, change: Float[Tensor, "entry batch key_pos"]
    ) -> Float[Tensor, "entry batch d_vocab"]:
        """The prediction with `change` added to one row of one head's pattern, for each change."""
        logits = self._layer_0(head, row, change) if layer == 0 else self._layer_1(head, row, change)
        return logits.log_softmax(dim=-1)

    def _layer_1(self, head: int, row: int, change: Tensor) -> Tensor:
        """Linear: the head's output at the last position moves along the values it reads."""
        read = [torch.einsum("bk,bkv->bv", s.softmax(dim=-1), v) for s, v in zip(self.scores, self.values, strict=True)]
        logits = (self.direct + sum(read)).expand(len(change), -1, -1)
        if row < self.layout.n_ctx - 1:
            return logits  # the prediction reads the last row alone
        return logits + torch.einsum("ebk,bkv->ebv", change, self.values[head])

    def _layer_0(self, head: int, row: int, change: Tensor) -> Tensor:
        d_block, is_query = self.layout.d_block, row == self.layout.n_ctx - 1
        block = slice((1 + head) * d_block, (2 + head) * d_block)  # what the head wrote, within the residual
        logits = self.direct.expand(len(change), -1, -1)
        if is_query:
            logits = logits + self._through(change, self.direct_readout[block])
        for attention, readout, query, old_scores, values in zip(
            self.attention, self.readout, self.queries, self.scores, self.values, strict=True
        ):
            scores = old_scores.expand(len(change), -1, -1).clone()
            if is_query:
                change_of_query = self._through(change, attention[block])  # [entry, batch, width]
                scores += torch.einsum("ebd,bkd->ebk", change_of_query, self.residual)
                query = query + change_of_query
            scores[..., row] += self._along(change, query[..., block])
            pattern = scores.softmax(dim=-1)
            logits = logits + torch.einsum("ebk,bkv->ebv", pattern, values)
            logits = logits + pattern[..., row, None] * self._through(change, readout[block])
        return logits

    def _through(self, change: Tensor, weights: Float[Tensor, "d_block width"]) -> Float[Tensor, "entry batch width"]:
        return torch.einsum("ebk,bkw->ebw", change, self.embedding @ weights)

    def _along(self, change: Tensor, query: Float[Tensor, "*entry batch d_block"]) -> Float[Tensor, "entry batch"]:
        """Q . u for every change; a query of its own for each entry, or one for all."""
        reach = torch.einsum("bkd,...bd->...bk", self.embedding, query)
        return (change * reach).sum(dim=-1)
