"""What a reader gets in place of a sender that it may not hear: the counterfactual value of every slot.

Two kinds. *Constants* - "zero", and "mean", the slot's mean over sequences and positions. *Other runs* - "resample", in
which every sequence has the tokens of another one; "permute", in which every position bears the name of another one;
"resample_and_permute", both; or tokens of your own. Corrupted tokens keep every position's name, so no pair of token
sequences can show what positions do; and a position's mean over sequences alone is its own name, so "mean" has to run
over positions too.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.interventions import other_positions, other_sequences

Counterfactual = Literal["zero", "mean", "resample", "permute", "resample_and_permute"]
COUNTERFACTUALS: tuple[Counterfactual, ...] = get_args(Counterfactual)
Slots = dict[str, Float[Tensor, "_sequence pos _width"]]


def embed(tokens: Int[Tensor, "batch n_ctx"], d_vocab: int, dtype: torch.dtype) -> Slots:
    """The two embeddings of a run: one-hot tokens, and every position's own name.

    >>> embed(torch.tensor([[1, 0]]), d_vocab=2, dtype=torch.float32)["token"].tolist()
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    n_ctx = tokens.shape[1]
    names = torch.eye(n_ctx, dtype=dtype, device=tokens.device)
    return {
        "token": torch.nn.functional.one_hot(tokens, d_vocab).to(dtype),
        "position": names.expand(len(tokens), n_ctx, n_ctx),
    }


def corrupted_inputs(
    tokens: Int[Tensor, "batch n_ctx"], d_vocab: int, dtype: torch.dtype, kind: str, seed: int
) -> Slots:
    """The two embeddings of the run that a counterfactual of the second kind is taken from."""
    if kind in ("resample", "resample_and_permute"):
        inputs = embed(tokens[other_sequences(len(tokens), seed).to(tokens.device)], d_vocab, dtype)
    else:
        inputs = embed(tokens, d_vocab, dtype)
    if kind in ("permute", "resample_and_permute"):
        names = other_positions(len(tokens), tokens.shape[1], seed).to(tokens.device)
        inputs["position"] = torch.nn.functional.one_hot(names, tokens.shape[1]).to(dtype)
    return inputs


def constant(value: Float[Tensor, "batch pos width"], kind: str) -> Float[Tensor, "1 pos width"]:
    """Zeros, or the mean over sequences and positions, in the shape of a slot."""
    vector = value.mean(dim=(0, 1)) if kind == "mean" else torch.zeros_like(value[0, 0])
    return vector.expand(1, value.shape[1], -1)


def check_counterfactual(kind: str) -> None:
    """Raise a ValueError that lists the counterfactuals, unless this is one."""
    if kind not in COUNTERFACTUALS:
        raise ValueError(
            f"counterfactual must be one of {', '.join(COUNTERFACTUALS)}, or tokens of your own: got {kind!r}"
        )
