"""Sequences with their targets, and what makes them sound."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Sequences and what to predict after them.

    Attributes:
        tokens: int64 [batch, n_ctx].
        target_probs: float32 [batch, d_vocab]; the law of the target given its parents' tokens.

    >>> from causal_circuits import InContextTask, chain_graph
    >>> batch = InContextTask(chain_graph(6), d_vocab=3).sample(100, seed=0)
    >>> batch.tokens.shape, batch.target_probs.shape, len(batch[:10].tokens)
    (torch.Size([100, 6]), torch.Size([100, 3]), 10)
    """

    tokens: Int[Tensor, "batch n_ctx"]
    target_probs: Float[Tensor, "batch d_vocab"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | Tensor) -> "Batch":
        return Batch(self.tokens[index], self.target_probs[index])

    def check(self, d_vocab: int, n_ctx: int | None = None) -> None:
        """Raise a ValueError unless tokens lie in the vocabulary and every target is a probability vector.

        Args:
            d_vocab: number of tokens.
            n_ctx: length of the sequences; None takes any.
        """
        check_tokens(self.tokens, d_vocab, n_ctx)
        if self.target_probs.shape != (len(self.tokens), d_vocab):
            raise ValueError(
                f"target_probs must be [batch, d_vocab] = {[len(self.tokens), d_vocab]}: "
                f"got {list(self.target_probs.shape)}"
            )
        off = (self.target_probs.sum(dim=-1) - 1).abs().max()
        if not off <= 1e-3 or self.target_probs.min() < 0:  # NaN is never <= anything
            raise ValueError(
                "target_probs must be probabilities, each row with sum 1: found NaN, a negative entry, or a sum off "
                f"by {float(off):.3g}; divide by the row sums"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The same batch on another device; `dtype` applies to the probabilities."""
        return Batch(self.tokens.to(device), self.target_probs.to(device=device, dtype=dtype))


def check_tokens(tokens: Tensor, d_vocab: int, n_ctx: int | None = None) -> None:
    """Raise a ValueError unless `tokens` are integers in 0 .. d_vocab - 1, [batch, n_ctx], a batch of at least one."""
    if tokens.ndim != 2 or tokens.shape[0] == 0 or n_ctx not in (None, tokens.shape[1]):
        expected = "n_ctx" if n_ctx is None else f"n_ctx={n_ctx}"
        raise ValueError(f"tokens must be [batch, {expected}] with a batch of 1 or more: got {list(tokens.shape)}")
    if tokens.is_floating_point() or tokens.min() < 0 or tokens.max() >= d_vocab:
        raise ValueError(
            f"tokens must be integers in 0 .. {d_vocab - 1}: got {tokens.dtype} in [{tokens.min()}, {tokens.max()}]"
        )
