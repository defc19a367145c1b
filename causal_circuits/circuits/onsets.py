"""When a curve gets going, and how that varies from run to run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments

RESAMPLES = 1000


@check_arguments
def onset(steps: Sequence[int], curves: Float[Tensor, "step cell"]) -> Float[Tensor, " cell"]:
    """The first step from which each curve stays half-way from its first to its last value or above.

    NaN if the last value is not higher, or a value is NaN.

    >>> onset((0, 10, 100), torch.tensor([[0.0, 0.9], [0.8, 0.1], [1.0, 1.0]]))
    tensor([ 10., 100.])
    """
    if not steps or len(steps) != len(curves):
        raise ValueError(f"steps must be one a row of curves, at least one: got {len(steps)} for {list(curves.shape)}")
    half = (curves[0] + curves[-1]) / 2
    stays = (curves >= half).flip(0).cumprod(dim=0).flip(0).bool()
    first = torch.tensor(steps, dtype=torch.float32)[stays.int().argmax(dim=0)]
    return torch.where((curves[-1] > curves[0]) & ~curves.isnan().any(dim=0), first, torch.nan)


@check_arguments
@dataclass(frozen=True)
class OnsetInterval:
    """The median onset over edges, over several seeds.

    Attributes:
        mean: over seeds of the median over edges, in steps; an edge without an onset counts as later than all others,
            and a seed whose median has none is left out: where `never` is not 0, the mean may be too early.
        low, high: 95% bootstrap interval over seeds (with three seeds or fewer, little more than their range).
        never: the share of edges, over all seeds, without an onset.

    >>> found = onset_interval([torch.tensor([10.0, 20.0, 90.0]), torch.tensor([30.0, 40.0, float("nan")])])
    >>> found.mean, round(found.never, 3)
    (30.0, 0.167)
    """

    mean: float
    low: float
    high: float
    never: float


@check_arguments
def onset_interval(onsets: Sequence[Float[Tensor, " cell"]]) -> OnsetInterval:
    """Sum up the onsets of several runs; NaN where half of the edges of every run have none.

    Args:
        onsets: one tensor for each seed (`CircuitFormation.causal_onset` or `attention_onset`).

    >>> onset_interval([torch.tensor([10.0, 20.0, 90.0]), torch.tensor([30.0, 40.0, float("nan")])]).mean
    30.0
    """
    if not onsets:
        raise ValueError("an interval over seeds needs at least one run: got none")
    never = float(torch.stack([run.isnan().float().mean() for run in onsets]).mean())
    medians = torch.stack([run.double().nan_to_num(nan=torch.inf).quantile(0.5) for run in onsets])
    medians = medians[medians.isfinite()]
    if not len(medians):
        return OnsetInterval(float("nan"), float("nan"), float("nan"), never)
    draws = torch.randint(len(medians), (RESAMPLES, len(medians)), generator=torch.Generator().manual_seed(0))
    low, high = medians[draws].mean(dim=-1).quantile(torch.tensor([0.025, 0.975], dtype=medians.dtype)).tolist()
    return OnsetInterval(float(medians.mean()), low, high, never)
