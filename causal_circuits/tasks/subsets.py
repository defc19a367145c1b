"""What can be predicted with part of the parents: the lines at which the loss of a multi-head model rests.

A model that knows m of the k parent numbers counts what followed the target's tokens at these m, whatever stood at the
others. The counts mix rows of the transition matrix, so the best pseudo-count is not the prior's: it is calibrated,
which matters (in the paper's two-parent setting, roots shared, it takes the single-parent line from 1.35 to 1.25 nats).
"""

from collections.abc import Sequence
from itertools import combinations

from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.tasks.base import Task, graph_of
from causal_circuits.tasks.batch import Batch
from causal_circuits.tasks.posterior import cross_entropy, following_counts
from causal_circuits.tasks.predictors import PSEUDO_COUNTS, smoothed


@check_arguments
def subset_predictor(
    task: Task, tokens: Int[Tensor, "batch n_ctx"], which: Sequence[int], pseudo_count: float
) -> Float[Tensor, "batch d_vocab"]:
    """Smoothed frequencies of what followed the target's tokens at the parents numbered `which` (from 0, by position).

    (pseudo_count + counts) / (d_vocab pseudo_count + n), counts over positions with as many parents as the target whose
    parents numbered `which` hold the tokens of the target's. All parents and pseudo_count alpha are the edge posterior;
    none gives frequencies of all children.

    >>> task = cc.InContextTask(cc.ngram_graph(6, order=2), d_vocab=2)
    >>> tokens = torch.tensor([[0, 1, 1, 0, 1, 0]])             # target after (1, 0); after (., 0) came 1 once
    >>> subset_predictor(task, tokens, which=(1,), pseudo_count=1.0)
    tensor([[0.3333, 0.6667]], dtype=torch.float64)
    """
    return smoothed(_checked_counts(task, tokens, which), pseudo_count)


@check_arguments
def subset_loss(task: Task, batch: Batch, which: Sequence[int]) -> float:
    """The lowest loss of `subset_predictor` on a batch, over pseudo-counts from 0.001 to 100 (log grid); nats.

    >>> task = cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=2)
    >>> batch = task.sample(500, seed=0)
    >>> cc.tasks.subset_loss(task, batch, [0, 1]) < cc.tasks.subset_loss(task, batch, [])
    True
    """
    batch.check_last_only()
    counts = _checked_counts(task, batch.tokens, which)
    losses = [cross_entropy(smoothed(counts, pseudo), batch.target_probs).mean() for pseudo in PSEUDO_COUNTS]
    return float(min(losses))


@check_arguments
def subset_losses(task: Task, batch: Batch) -> dict[tuple[int, ...], float]:
    """The calibrated loss for every set of parent numbers, from none to all: where a plateau of training may lie.

    With k parents there are 2^k lines; for an (m + 1)-gram inside a (k + 1)-gram take the last m numbers.

    >>> task = cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=2)
    >>> losses = cc.tasks.subset_losses(task, task.sample(500, seed=0))
    >>> sorted(losses), min(losses, key=losses.get)
    ([(), (0,), (0, 1), (1,)], (0, 1))
    """
    numbers = range(len(task.target_parents))
    sets = [which for size in range(len(numbers) + 1) for which in combinations(numbers, size)]
    return {which: subset_loss(task, batch, which) for which in sets}


def _checked_counts(task: Task, tokens: Tensor, which: Sequence[int]) -> Float[Tensor, "batch d_vocab"]:
    task.check_tokens(tokens)
    in_degree = len(task.target_parents)
    if len(set(which)) != len(which) or any(not 0 <= number < in_degree for number in which):
        raise ValueError(f"parent numbers must differ and lie in 0 .. {in_degree - 1} of the target: got {list(which)}")
    return following_counts(task, tokens, which, graph_of(task))
