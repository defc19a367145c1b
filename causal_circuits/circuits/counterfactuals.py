"""What a reader gets in place of a sender that is cut off: the counterfactual value of every slot.

Two kinds. *Constants* - "zero", and "mean", the slot's mean over sequences and positions. *Other runs* - "resample", in
which every sequence has the tokens of another one; "permute", in which every position bears the name of another one;
"resample_and_permute", both; or tokens of your own. Corrupted tokens keep every position's name, so no pair of token
sequences can show what positions do; and a position's mean over sequences alone is its own name, so "mean" has to run
over positions too.
"""

from typing import Literal, get_args

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.circuits.forward import Forward, Slots
from causal_circuits.interventions import other_positions, other_sequences

Counterfactual = Literal["zero", "mean", "resample", "permute", "resample_and_permute"]
COUNTERFACTUALS: tuple[Counterfactual, ...] = get_args(Counterfactual)


def corrupted_inputs(forward: Forward, tokens: Int[Tensor, "batch n_ctx"], kind: str, seed: int) -> Slots:
    """The embeddings of the run that a counterfactual of the second kind is taken from."""
    if kind in ("resample", "resample_and_permute"):
        tokens = tokens[other_sequences(len(tokens), seed).to(tokens.device)]
    inputs = forward.embed(tokens)
    if kind in ("permute", "resample_and_permute"):
        if "position" not in inputs:
            raise ValueError(f"{kind!r} exchanges embeddings of positions, and this model has none: take 'resample'")
        names = other_positions(len(tokens), tokens.shape[1], seed).to(tokens.device)
        inputs["position"] = inputs["position"].take_along_dim(names[..., None], dim=1)
    return inputs


def constant(value: Float[Tensor, "batch pos width"], kind: str) -> Float[Tensor, "1 pos width"]:
    """Zeros, or the mean over sequences and positions, in the shape of a slot."""
    mean = reduce(value, "batch pos width -> 1 1 width", "mean")
    return (mean if kind == "mean" else torch.zeros_like(mean)).expand(-1, value.shape[1], -1)
