"""What every intervention needs: checked input, other sequences and positions to borrow from, a standard error."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, check_forward, check_model, log_probs
from causal_circuits.tasks import Batch
from causal_circuits.tasks.batch import chunks


def predictions(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities at the last position, `CHUNK` sequences at a time, with whatever hooks are attached."""
    return torch.cat([log_probs(model, tokens[rows]) for rows in chunks(len(tokens))])


def check_input(model: HookedTransformer, batch: Batch) -> None:
    """Raise a ValueError unless the batch is sound, fits the model, and the model answers it one way only."""
    batch.check(model.cfg.d_vocab, d_vocab_out=model.cfg.d_vocab_out)
    check_model(model, model.cfg.d_vocab, batch.tokens.shape[1])
    check_forward(model, batch.tokens)


def check_hooks(model: HookedTransformer, names: list[str]) -> None:
    """Raise a ValueError unless the model has every one of these hooks."""
    unknown = [name for name in names if name not in model.hook_dict]
    if unknown:
        raise ValueError(f"the model has no hook {unknown[0]!r}; it has {', '.join(model.hook_dict)}")


@check_arguments
def other_sequences(n: int, seed: int) -> Int[Tensor, " batch"]:
    """For each of n sequences another one to borrow from: one random cycle through all, a derangement.

    >>> sorted(other_sequences(4, seed=0).tolist())
    [0, 1, 2, 3]
    """
    if n < 2:
        raise ValueError(f"resampling needs at least 2 sequences to take another one's value: got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


@check_arguments
def other_positions(n: int, n_ctx: int, seed: int) -> Int[Tensor, "batch pos"]:
    """For each position of each sequence another position: a random cycle through all of them, sequence by sequence.

    >>> sorted(other_positions(1, 3, seed=0)[0].tolist())
    [0, 1, 2]
    """
    if n < 1 or n_ctx < 2:
        raise ValueError(f"permuting positions needs a sequence and at least 2 of them: got {n} of {n_ctx}")
    order = torch.rand(n, n_ctx, generator=torch.Generator().manual_seed(seed)).argsort(dim=-1)
    return torch.empty_like(order).scatter_(1, order, order.roll(1, dims=1))


@check_arguments
def standard_error(values: Tensor) -> float:
    """Of the mean of paired values; infinite for a single one.

    >>> round(standard_error(torch.tensor([1.0, 2.0, 3.0])), 4)  # the standard deviation is 1, the root of three 1.7321
    0.5774
    """
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("inf")
