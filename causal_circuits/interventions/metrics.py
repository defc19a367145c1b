"""What an intervention is judged by: five metrics of a prediction, and one sign for all of them.

A *cost* is a metric with the sign by which lower is better. The *effect* of an intervention is how much it raises the
cost, sequence by sequence: positive means that what was ablated was of use, whatever the metric.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments, shown
from causal_circuits.models import HookedTransformer, log_probs
from causal_circuits.tasks import Batch, Task

MetricName = Literal["loss", "kl_to_model", "kl_to_posterior", "logit_difference", "accuracy"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
Predictions = Float[Tensor, "*copies batch d_vocab"]
Metric = MetricName | Callable[[Predictions], Float[Tensor, "*copies batch"]]


@check_arguments
@dataclass(frozen=True)
class Cost:
    """A metric of log-probabilities at the last position, with the sign by which lower is better.

    Attributes:
        name: of the metric.
        sign: 1 where the metric itself is better when lower, -1 where it is better when higher.
        metric: log-probabilities [..., batch, d_vocab] -> one number a sequence.

    >>> cost = Cost("share right", -1, lambda log_probs: log_probs.exp()[..., 0])
    >>> cost(torch.tensor([[0.25, 0.75]]).log())
    tensor([-0.2500], dtype=torch.float64)
    """

    name: str
    sign: int
    metric: Callable[[Predictions], Float[Tensor, "*copies batch"]]

    def __call__(self, predictions: Predictions) -> Float[Tensor, "*copies batch"]:
        """The cost of every sequence, float64; a ValueError where it is NaN."""
        found, wanted = self.metric(predictions), predictions.shape[:-1]
        if not isinstance(found, Tensor) or found.shape != wanted or found.is_complex():
            raise ValueError(
                f"the metric {self.name!r} must give one number a sequence, a tensor {list(wanted)}: got "
                f"{shown(found)}; take no mean over sequences, and keep the axes before d_vocab"
            )
        values = self.sign * found.double()
        if bool(values.isnan().any()):
            raise ValueError(
                f"the metric {self.name!r} must be a number for every sequence: it is NaN for "
                f"{int(values.isnan().sum())} of {values.numel()}; check the model's weights and the targets"
            )
        return values


@check_arguments
def make_cost(
    metric: Metric, batch: Batch, *, model: HookedTransformer | None = None, task: Task | None = None
) -> Cost:
    """The cost that a metric's name (or your own function) stands for, on the sequences of a batch.

    Args:
        metric: "loss": soft-label cross-entropy, nats. "kl_to_model": KL(untouched model || prediction), nats.
            "kl_to_posterior": KL(edge posterior || prediction), nats; needs the task. "logit_difference": the logit of
            the likeliest target minus the mean logit of the others. "accuracy": 1 where the likeliest token is the
            likeliest target. Or a function of log-probabilities [..., batch, d_vocab] that gives one number a
            sequence, lower being better.
        batch: sequences and targets.
        model: whose untouched prediction "kl_to_model" compares with.
        task: whose edge posterior "kl_to_posterior" compares with.

    >>> batch = Batch(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    >>> make_cost("loss", batch)(torch.tensor([[0.5, 0.5]]).log()).item()
    0.6931471824645996
    """
    batch.check_last_only()
    target = batch.target_probs
    if callable(metric):
        return Cost(getattr(metric, "__name__", "metric"), 1, metric)
    if metric == "loss":
        return Cost(metric, 1, lambda predictions: -(target * predictions).sum(dim=-1))
    if metric == "accuracy":
        best = target.argmax(dim=-1)
        return Cost(metric, -1, lambda predictions: (predictions.argmax(dim=-1) == best).to(predictions.dtype))
    if metric == "logit_difference":
        is_best = torch.nn.functional.one_hot(target.argmax(dim=-1), target.shape[-1]).to(target.dtype)
        contrast = is_best - (1 - is_best) / max(target.shape[-1] - 1, 1)
        return Cost(metric, -1, lambda predictions: (contrast * predictions).sum(dim=-1))
    if metric == "kl_to_model":
        if model is None:
            raise ValueError("metric 'kl_to_model' compares with the untouched model: pass model=")
        with torch.no_grad():
            reference = log_probs(model, batch.tokens)
        return Cost(metric, 1, lambda predictions: (reference.exp() * (reference - predictions)).sum(dim=-1))
    if task is None:
        raise ValueError("metric 'kl_to_posterior' needs the task whose edge posterior it compares with: pass task=")
    predictor = getattr(task, "bayes_predictor", None)
    if predictor is None:
        raise ValueError(
            "metric 'kl_to_posterior' needs a task with a prior, such as an InContextTask: "
            f"{type(task).__name__} has no bayes_predictor; take another metric, such as 'loss'"
        )
    posterior: Tensor = predictor(batch.tokens).to(target.device)
    entropy = torch.special.xlogy(posterior, posterior).sum(dim=-1)
    return Cost(metric, 1, lambda predictions: entropy - (posterior * predictions.double()).sum(dim=-1))
