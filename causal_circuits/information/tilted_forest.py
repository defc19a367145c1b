"""A Markov forest whose tokens carry a weight: t for one token a, 1 for the others.

    P(x) t^(number of a's in x) / E[t^(number of a's)]

is again a Markov forest, with kernels of its own at every position: messages from the leaves give them
(belief propagation). Its pair laws are what moments of token counts are made of: see `finite_context`.

Axes: ``kernel``, ``node`` (the values of t), positions, tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_TINY = 1e-300  # where a message vanishes, so does the weight of everything that would be divided by it


@dataclass(frozen=True)
class TiltedForest:
    """The tilted laws of one token a, for several kernels and several t.

    Attributes:
        parents: of every position, -1 for a root.
        token: a.
        total: E[t^(number of a's)].
        marginals: P~(x_k = s).
        kernels: P~(x_k = s' | x_parent = s) for every position with a parent.
    """

    parents: tuple[int, ...]
    token: int
    total: Float[np.ndarray, "kernel node"]
    marginals: Float[np.ndarray, "kernel node position token"]
    kernels: dict[int, Float[np.ndarray, "kernel node token token"]]

    def pair_laws(self) -> Float[np.ndarray, "kernel node position position token"]:
        """P~(x_i = a, x_j = s) for j <= i; entries with j > i are not filled in (but for ancestors' sake)."""
        n, marginals = len(self.parents), self.marginals
        laws = np.zeros((*self.total.shape, n, n, marginals.shape[-1]))
        own = marginals[..., self.token]
        laws[:, :, np.arange(n), np.arange(n), self.token] = own
        lines = self._ancestors()
        for child in range(n - 1, -1, -1):  # upwards: from i to its ancestors, children first
            parent = self.parents[child]
            if parent >= 0:
                below = [i for i in range(n) if child == i or child in lines[i]]
                joint = marginals[:, :, parent, :, None] * self.kernels[child]  # [x_parent, x_child]
                back = joint / np.maximum(marginals[:, :, child, None, :], _TINY)
                laws[:, :, below, parent] = laws[:, :, below, child] @ back.swapaxes(-1, -2)
        for j in range(n):  # then down to everyone else
            others = [i for i in range(j + 1, n) if j not in lines[i]]
            parent = self.parents[j]
            if parent >= 0:
                laws[:, :, others, j] = laws[:, :, others, parent] @ self.kernels[j]
            else:
                laws[:, :, others, j] = own[:, :, others, None] * marginals[:, :, j, None]
        return laws

    def _ancestors(self) -> list[set[int]]:
        lines: list[set[int]] = []
        for parent in self.parents:
            lines.append(lines[parent] | {parent} if parent >= 0 else set())
        return lines


def tilt(
    parents: Sequence[int],
    pi: Float[np.ndarray, "kernel token token"],
    law: Float[np.ndarray, "kernel token"],
    token: int,
    nodes: Float[np.ndarray, " node"],
) -> TiltedForest:
    """The forest over `parents` with kernel `pi` and root law `law`, its `token` weighted by every t of `nodes`.

    >>> half = np.full((1, 2, 2), 0.5)
    >>> tilt([-1, 0], half, half[:, 0], token=0, nodes=np.array([0.0, 1.0])).total     # 1/4: no zero in two tokens
    array([[0.25, 1.  ]])
    """
    n, d_vocab = len(parents), law.shape[-1]
    weight = np.where(np.arange(d_vocab) == token, nodes[:, None], 1.0)  # [node, token]
    kernel = pi[:, None]
    messages = [np.broadcast_to(weight, (len(pi), *weight.shape)).copy() for _ in range(n)]
    total = np.ones((len(pi), len(nodes)))
    kernels, roots = {}, {}
    for k in range(n - 1, -1, -1):
        if parents[k] >= 0:
            sent = (kernel @ messages[k][..., None])[..., 0]
            messages[parents[k]] *= sent
            kernels[k] = kernel * messages[k][..., None, :] / np.maximum(sent, _TINY)[..., None]
        else:
            joint = law[:, None] * messages[k]
            mass = joint.sum(axis=-1)
            total *= mass
            roots[k] = joint / np.maximum(mass, _TINY)[..., None]
    marginals = np.zeros((*total.shape, n, d_vocab))
    for k in range(n):
        parent = parents[k]
        marginals[:, :, k] = roots[k] if parent < 0 else (marginals[:, :, parent, None] @ kernels[k])[..., 0, :]
    return TiltedForest(tuple(parents), token, total, marginals, kernels)
