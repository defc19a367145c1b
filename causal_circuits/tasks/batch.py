"""Sequences with their targets, and what makes them sound."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import ONE_LENGTH, check_arguments

MOST_NUMBERS = 2**28  # of labels as probabilities, which take 1 GiB
CHUNK = 2048  # sequences of one pass through a model


@check_arguments
@dataclass(frozen=True, init=False, repr=False, eq=False)
class Batch:
    """Sequences and what to predict after them.

    Args:
        tokens: integers of any width [batch, n_ctx], as a tensor, a numpy array or lists.
        target_probs: probabilities [batch, d_vocab], the law of the target given its parents' tokens; or labels
            [batch], the targets themselves, which stand for the probabilities 0 and 1. With an axis more,
            [batch, n_ctx, d_vocab] or [batch, n_ctx], what comes after every position: the loss is then the mean over
            positions.
        d_vocab: how many tokens there are, for labels; None takes as many as occur, the largest token or label plus
            one. Targets of probabilities say it themselves.

    Attributes:
        tokens: int64 [batch, n_ctx].
        target_probs: float32, or float64 if given so, [batch, d_vocab] or [batch, n_ctx, d_vocab]; without gradients.

    >>> batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3).sample(100, seed=0)
    >>> batch, batch[:10].tokens.shape
    (Batch(100 sequences, n_ctx 6, d_vocab 3), torch.Size([10, 6]))
    >>> Batch([[0, 1, 2], [2, 2, 1]], [1, 0]).target_probs
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """

    tokens: Int[Tensor, "batch n_ctx"]
    target_probs: Float[Tensor, "batch d_vocab"] | Float[Tensor, "batch n_ctx d_vocab"]

    def __init__(
        self,
        tokens: Int[Tensor, "batch n_ctx"],
        target_probs: Float[Tensor, "batch d_vocab"]
        | Float[Tensor, "batch n_ctx d_vocab"]
        | Int[Tensor, "batch"]
        | Int[Tensor, "batch n_ctx"],
        d_vocab: int | None = None,
    ) -> None:
        for name, values in (("tokens", tokens), ("target_probs", target_probs)):
            if values.layout != torch.strided:
                raise ValueError(f"{name} must be a dense tensor: got {values.layout}; give {name}.to_dense()")
        if not target_probs.is_floating_point():
            target_probs = _one_hot(tokens, target_probs, d_vocab)
        elif d_vocab not in (None, target_probs.shape[-1]):
            raise ValueError(
                f"d_vocab must be the width of target_probs, {target_probs.shape[-1]}: got {d_vocab}; leave it out"
            )
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "target_probs", target_probs.detach())

    def __repr__(self) -> str:
        n_ctx, d_vocab = self.tokens.shape[-1], self.target_probs.shape[-1]
        where = ", targets after every position" if self.every_position else ""
        return f"Batch({len(self):,} sequences, n_ctx {n_ctx}, d_vocab {d_vocab}{where})"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | Tensor) -> "Batch":
        return Batch(self.tokens[index], self.target_probs[index])

    @property
    def every_position(self) -> bool:
        """Whether there is a target after every position, and not after the last alone."""
        return self.target_probs.ndim == 3

    @property
    def last(self) -> "Batch":
        """The same sequences with the target after the last position alone, which is what most tools look at."""
        return Batch(self.tokens, self.target_probs[:, -1]) if self.every_position else self

    def check(
        self,
        d_vocab: int,
        n_ctx: int | None = None,
        *,
        d_vocab_out: int | None = None,
        every_position: bool | None = False,
    ) -> None:
        """Raise a ValueError unless tokens lie in the vocabulary and every target is a probability vector.

        Args:
            d_vocab: number of tokens.
            n_ctx: length of the sequences; None takes any.
            d_vocab_out: number of outputs that the targets are over; None takes d_vocab.
            every_position: whether targets stand after every position; None takes both.
        """
        check_tokens(self.tokens, d_vocab, n_ctx)
        if every_position is False:
            self.check_last_only()
        width, name = (d_vocab, "d_vocab") if d_vocab_out in (None, d_vocab) else (d_vocab_out, "d_vocab_out")
        positions = self.every_position if every_position is None else every_position
        expected = (*self.tokens.shape, width) if positions else (len(self.tokens), width)
        if self.target_probs.shape != expected:
            axes = f"batch, n_ctx, {name}" if positions else f"batch, {name}"
            raise ValueError(f"target_probs must be [{axes}] = {list(expected)}: got {list(self.target_probs.shape)}")
        check_probabilities("target_probs", self.target_probs, 1e-3)

    def check_last_only(self) -> None:
        """Raise a ValueError if there is a target after every position, for tools that look at the last."""
        if self.every_position:
            raise ValueError(
                "this looks at the target after the last position: got a batch with targets after every position; "
                "give batch.last, of a task task.sample(n).last"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The same batch on another device; `dtype` applies to the probabilities."""
        return Batch(self.tokens.to(device), self.target_probs.to(device=device, dtype=dtype))


def chunks(n: int, size: int | None = None) -> list[slice]:
    """Rows 0 .. n - 1 in pieces of `size`, by default `CHUNK`."""
    size = CHUNK if size is None else size
    return [slice(start, start + size) for start in range(0, n, size)]


def _one_hot(
    tokens: Int[Tensor, "batch n_ctx"], labels: Int[Tensor, "*label"], d_vocab: int | None
) -> Float[Tensor, "*label d_vocab"]:
    """Labels as the probabilities 0 and 1, among `d_vocab` tokens or as many as occur."""
    if tokens.numel() == 0:
        raise ValueError(f"tokens must be [batch, n_ctx] with a batch of 1 or more: got {list(tokens.shape)}")
    if d_vocab is None:
        check_offset(tokens, labels)
        d_vocab = int(max(tokens.max(), labels.max())) + 1
    check_tokens(tokens, d_vocab)
    if labels.ndim == 2 and labels.shape[1] == d_vocab and bool(((labels >= 0) & (labels.sum(1, True) == 1)).all()):
        raise ValueError(
            f"integers [batch, n_ctx] are labels after every position: got rows of zeros and a 1, {d_vocab} wide as "
            "the vocabulary; give probabilities as floats, or these labels as one_hot(labels, d_vocab).float()"
        )
    if labels.min() < 0 or labels.max() >= d_vocab:
        hint = ONE_LENGTH if labels.min() < 0 else "give d_vocab if there are more tokens"
        raise ValueError(
            f"labels must be integers in 0 .. {d_vocab - 1}: got some in [{labels.min()}, {labels.max()}]; {hint}"
        )
    if labels.numel() * d_vocab > MOST_NUMBERS:
        raise ValueError(
            f"labels over a vocabulary of {d_vocab:,} make {labels.numel() * d_vocab:,} numbers, more than "
            f"{MOST_NUMBERS:,}: number the tokens that occur from 0, or take fewer sequences"
        )
    return torch.nn.functional.one_hot(labels, d_vocab).float()


def check_probabilities(name: str, rows: Float[Tensor, "*rows d_vocab"], tolerance: float) -> None:
    """Raise a ValueError unless each row is at least 0, with a sum within `tolerance` of 1."""
    sums = rows.double().sum(dim=-1)
    if not bool(((rows >= 0).all(dim=-1) & ((sums - 1).abs() <= tolerance)).all()):  # NaN is never <= anything
        raise ValueError(
            f"{name} must be probabilities, rows of at least 0 that sum to 1: got entries from {rows.min():.3g} and "
            f"sums in [{sums.min():.6g}, {sums.max():.6g}]; divide by the row sums, or take the softmax of logits"
        )


def check_offset(tokens: Int[Tensor, "batch n_ctx"], labels: Int[Tensor, "*label"]) -> None:
    """Raise a ValueError if tokens seem to be counted from 1 and labels from 0."""
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest == 1 and int(labels.min()) == 0 and int(labels.max()) == highest - 1:
        raise ValueError(
            f"tokens and labels must be counted alike: got tokens in 1 .. {highest} and labels in 0 .. {highest - 1}; "
            f"subtract 1 from the tokens, or give d_vocab={highest + 1} if token 0 occurs as a label only"
        )


def check_tokens(tokens: Tensor, d_vocab: int, n_ctx: int | None = None) -> None:
    """Raise a ValueError unless `tokens` are integers in 0 .. d_vocab - 1, [batch, n_ctx], a batch of at least one."""
    if tokens.ndim != 2 or tokens.shape[0] == 0 or n_ctx not in (None, tokens.shape[1]):
        expected = "n_ctx" if n_ctx is None else f"n_ctx={n_ctx}"
        raise ValueError(f"tokens must be [batch, {expected}] with a batch of 1 or more: got {list(tokens.shape)}")
    if tokens.is_floating_point() or tokens.min() < 0 or tokens.max() >= d_vocab:
        hint = "; subtract 1 if they are counted from 1" if tokens.min() == 1 and tokens.max() == d_vocab else ""
        hint = f"; {ONE_LENGTH}" if tokens.min() < 0 else hint
        raise ValueError(
            f"tokens must be integers in 0 .. {d_vocab - 1}: "
            f"got {tokens.dtype} in [{tokens.min()}, {tokens.max()}]{hint}"
        )
