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
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.models import HookedTransformer, has_layout, layout_of
from causal_circuits.models.acceptance import takes_fast_forward


def has_closed_form(model: HookedTransformer) -> bool:
    """Whether the closed form applies to a model: disentangled, two layers, nothing foreign (`models.acceptance`)."""
    if not has_layout(model) or layout_of(model).kind != "disentangled" or layout_of(model).n_layers != 2:
        return False
    return takes_fast_forward(model)


class ChangedRows:
    """A two-layer disentangled model on some sequences, ready to answer for changed rows of attention.

    Args:
        model: one for which `has_closed_form` holds.
        tokens: the sequences.
    """

    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> None:
        layout, batch = layout_of(model), len(tokens)
        self.layout, self.n_heads = layout, layout.n_heads
        self.embedding = torch.cat(
            [
                torch.nn.functional.one_hot(tokens, layout.d_vocab).to(model.W_U.dtype),
                torch.eye(layout.n_ctx, dtype=model.W_U.dtype, device=tokens.device).expand(batch, -1, -1),
            ],
            dim=-1,
        )
        width = layout.width(1)
        self.attention = [block.attn.W_Q[:, : layout.width(layer)].detach() for layer, block in enumerate(model.blocks)]
        self.readout, self.bias = model.W_U.detach(), model.b_U.detach()
        future = torch.ones(layout.n_ctx, layout.n_ctx, dtype=torch.bool, device=tokens.device).triu(1)
        scores = [
            self.embedding @ self.attention[0][head, :, : layout.d_block] @ self.embedding.mT
            for head in range(layout.n_heads[0])
        ]
        self.patterns = torch.stack([s.masked_fill(future, -torch.inf).softmax(dim=-1) for s in scores], dim=1)
        copied = [self.patterns[:, head] @ self.embedding for head in range(layout.n_heads[0])]
        self.residual = torch.cat([self.embedding, *copied], dim=-1)  # what layer 1 reads, [batch, pos, width]
        self.queries = [self.residual[:, -1] @ self.attention[1][g, :, :width] for g in range(layout.n_heads[1])]
        self.scores = [torch.einsum("bd,bkd->bk", query, self.residual) for query in self.queries]
        self.values = [
            self.residual @ self.readout[width * (1 + g) : width * (2 + g)] for g in range(layout.n_heads[1])
        ]
        self.direct = self.residual[:, -1] @ self.readout[:width] + self.bias

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
            return logits  # a row that nobody reads
        return logits + torch.einsum("ebk,bkv->ebv", change, self.values[head])

    def _layer_0(self, head: int, row: int, change: Tensor) -> Tensor:
        layout, width = self.layout, self.layout.width(1)
        block = slice((1 + head) * layout.d_block, (2 + head) * layout.d_block)  # what head wrote, within the residual
        is_last = row == layout.n_ctx - 1
        logits = self.direct.expand(len(change), -1, -1)
        if is_last:
            logits = logits + self._through(change, self.readout[:width][block])
        for g, (query, scores, values) in enumerate(zip(self.queries, self.scores, self.values, strict=True)):
            moved = scores.expand(len(change), -1, -1).clone()
            if is_last:
                weights = self.attention[1][g, block, :width]
                turn = self._through(change, weights)  # change of the query, [entry, batch, width]
                moved += torch.einsum("ebd,bkd->ebk", turn, self.residual)
                query = query + turn
            moved[..., row] += self._along(change, query[..., block])
            pattern = moved.softmax(dim=-1)
            logits = logits + torch.einsum("ebk,bkv->ebv", pattern, values)
            written = self.readout[width * (1 + g) : width * (2 + g)][block]
            logits = logits + pattern[..., row, None] * self._through(change, written)
        return logits

    def _through(self, change: Tensor, weights: Float[Tensor, "d_block width"]) -> Float[Tensor, "entry batch width"]:
        """U W for every change."""
        return torch.einsum("ebk,bkw->ebw", change, self.embedding @ weights)

    def _along(self, change: Tensor, query: Float[Tensor, "*entry batch d_block"]) -> Float[Tensor, "entry batch"]:
        """Q . u for every change; a query of its own for each entry, or one for all."""
        reach = torch.einsum("bkd,...bd->...bk", self.embedding, query)
        return (change * reach).sum(dim=-1)
