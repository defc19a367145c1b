"""The gradient of order k, from data: what layer 0's attention of k heads at once gains on the parents of one position.

Let head h of layer 0 attend from position i to j_h and from the last position to a_h, the target's parents, and let
layer 1 compare their copies with strength beta. The products z_h = P_h[i, j_h] P_h[T-1, a_h] enter layer 1's score of
key i as beta sum_h z_h 1[x_{j_h} = x_{a_h}]; of its k-th power k! terms have each of them once, which cancels Taylor's
1 / k!. So with a read-out of gamma, to leading order in beta and gamma,

    - d^k L / dz_1 ... dz_k  =  beta^k gamma c_k E[(g_i - mean_l g_l) 1_M],      g_l = S y(x_l) - 1,  M: all k match,
    c_k = kappa_{k+1}(1/T) T / ((T - 1) S),

kappa_{k+1}(p) the cumulant of a Bernoulli variable: p (1 - p), times 1 - 2p for k = 2, 1 - 6p (1 - p) for k = 3. The
mean over keys is softmax's; for k = 1 this is the gradient of Algorithm 1 (Nichani, Damian & Lee 2024). For k > 1 it is
ours: docs/SEVERAL_PARENTS.md has the proof sketch and what it says about the parents.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Polynomial

from causal_circuits.arguments import check_arguments
from causal_circuits.information.matches import Gains, sums_by_last_key
from causal_circuits.tasks.batch import Batch


@check_arguments
def match_gradient(batch: Batch, target_parents: Sequence[int]) -> Float[np.ndarray, "keys position"]:
    """The predicted derivative over beta^k gamma, for every choice of k keys (`key_sets`); 0 up to the last.

    Args:
        batch: sequences with their targets.
        target_parents: the k positions a that the last rows look at, in order.

    Raises:
        ValueError: positions that are no k different ones of the context, in order.

    >>> task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=3)
    >>> gradient = cc.information.match_gradient(task.sample(20_000), (4, 5))
    >>> cc.information.key_sets(5, 2)[gradient[:, 3].argmax()].tolist()  # the parents of position 3
    [1, 2]
    """
    batch.check_last_only()
    n_ctx, k, d_vocab = batch.tokens.shape[1], len(target_parents), batch.target_probs.shape[1]
    if (
        not target_parents
        or sorted({*target_parents}) != [*target_parents]
        or not set(target_parents) < {*range(n_ctx)}
    ):
        raise ValueError(
            f"target_parents must be different positions of the context 0 .. {n_ctx - 1}, in order: got "
            f"{tuple(target_parents)}"
        )
    gains = Gains.of(batch.tokens, batch.target_probs.double()).observed
    sums = sums_by_last_key(
        batch.tokens, gains - gains.mean(dim=1, keepdim=True), torch.zeros(len(batch), 0), target_parents
    )
    gradient = np.zeros((comb(n_ctx - 1, k), n_ctx))
    for m in range(k - 1, n_ctx - 1):
        gradient[comb(m, k) : comb(m + 1, k), m + 1 :] = sums[m].numpy()
    return gradient * _softmax_coefficient(k, n_ctx) / (d_vocab * len(batch))


def _softmax_coefficient(k: int, n_ctx: int) -> float:
    """The k-th derivative of one of n_ctx equal softmax weights, over what is left to the others."""
    cumulant, variance = Polynomial([0, 1]), Polynomial([0, 1, -1])
    for _ in range(k):
        cumulant = variance * cumulant.deriv()
    return float(cumulant(1 / n_ctx)) * n_ctx / (n_ctx - 1)
