"""What every intervention needs: the loss of each sequence, checked input, a standard error."""

from jaxtyping import Float
from torch import Tensor

from causal_circuits.models import HookedTransformer, check_model, log_probs
from causal_circuits.tasks import Batch

CHUNK = 2048


def sequence_losses(model: HookedTransformer, batch: Batch) -> Float[Tensor, " batch"]:
    """Cross-entropy of every sequence, float64, with whatever hooks are attached."""
    return -(batch.target_probs * log_probs(model, batch.tokens)).sum(dim=-1).double()


def check(model: HookedTransformer, batch: Batch) -> None:
    """Raise a ValueError unless the batch is sound and fits the model."""
    batch.check(model.cfg.d_vocab)
    check_model(model, batch.target_probs.shape[1], batch.tokens.shape[1])


def standard_error(values: Tensor) -> float:
    """Of the mean of paired values; infinite for a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("inf")
