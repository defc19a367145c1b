"""A Markov forest whose tokens carry a weight: t for one token a, 1 for the others.

    P(x) t^(number of a's in x) / E[t^(number of a's)]

is again a Markov forest, with transition matrices of its own at every position: messages from the leaves give them
(belief propagation). Its pair laws are what moments of token counts are made of: see `finite_context`.

Axes: ``matrix``, ``node`` (the values of t), positions, tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float

_TINY = 1e-300  # where a message vanishes, so does the weight of everything that would be divided by it


@dataclass(frozen=True)
class TiltedForest:
    """The tilted laws of one token, for several matrices and several t.

    total is E[t^(number of a's)]; marginals are P~(x_k = s), matrices P~(x_k = s' | x_parent = s) of every position
    with a parent (-1 in `parents`: a root).
    """

    parents: tuple[int, ...]
    token: int
    total: Float[np.ndarray, "matrix node"]
    marginals: Float[np.ndarray, "matrix node position token"]
    matrices: dict[int, Float[np.ndarray, "matrix node token token"]]

    def expectations(
        self, reach: Float[np.ndarray, "matrix node token"]
    ) -> Float[np.ndarray, "matrix position position"]:
        """The sum over nodes of E~[1(x_i = a) reach(x_j)] for every j <= i; zero elsewhere.

        From the leaves upwards every position l gathers what is known of those below it, given its own token:
        U_i = P~(x_i = a, x_l) and D_j = E~[reach(x_j) | x_l]. Two positions whose lines meet in l have sum U_i D_j;
        those that never meet are independent.
        """
        n, own = len(self.parents), self.marginals[..., self.token]
        alone = np.einsum("kqjs,kqs->kqj", self.marginals, reach)
        found = own.transpose(0, 2, 1) @ alone  # [matrix, i, j], summed over nodes
        below: dict[int, list[_Below]] = {}
        for position in range(n - 1, -1, -1):
            at = np.zeros((*self.total.shape, 1, reach.shape[-1]))
            at[..., 0, self.token] = own[..., position]
            here = _Below([position], at, reach[:, :, None, :])
            parts = [here, *below.pop(position, [])]
            found[:, position, position] = here.together(here)[:, 0, 0]
            for first, second in itertools.permutations(parts, 2):
                if first is not here:  # i comes after every ancestor of its own
                    found[:, np.array(first.positions)[:, None], second.positions] = first.together(second)
            if self.parents[position] >= 0:
                below.setdefault(self.parents[position], []).append(self._carried_up(position, parts))
        return np.tril(found)

    def _carried_up(self, position: int, parts: list["_Below"]) -> "_Below":
        """What is known of `position` and all below it, given its parent's token in place of its own."""
        matrix, parent = self.matrices[position], self.parents[position]
        joint = self.marginals[:, :, parent, :, None] * matrix  # [x_parent, x_position]
        back = joint / np.maximum(self.marginals[:, :, position, None, :], _TINY)
        up = np.concatenate([part.up for part in parts], axis=2) @ back.swapaxes(-1, -2)
        down = np.concatenate([part.down for part in parts], axis=2) @ matrix.swapaxes(-1, -2)
        return _Below([i for part in parts for i in part.positions], up, down)


@dataclass(frozen=True)
class _Below:
    """Some positions below one: U_i and D_j of `TiltedForest.expectations`."""

    positions: list[int]
    up: Float[np.ndarray, "matrix node position token"]
    down: Float[np.ndarray, "matrix node later_read token"]

    def together(self, other: "_Below") -> Float[np.ndarray, "matrix later earlier"]:
        """The sum over nodes and tokens of U_i D_j, i of these and j of the others."""
        if len(other.positions) == 1:  # without copies: the usual case
            return np.asarray((self.up @ other.down.swapaxes(-1, -2)).sum(axis=1))
        axes = "matrix node position token -> matrix position (node token)"
        up, down = rearrange(self.up, axes), rearrange(other.down, axes)
        return np.asarray(up @ down.swapaxes(-1, -2))


def tilt(
    parents: Sequence[int],
    pi: Float[np.ndarray, "matrix token token"],
    law: Float[np.ndarray, "matrix token"],
    token: int,
    nodes: Float[np.ndarray, " node"],
) -> TiltedForest:
    """The forest over `parents` with matrix `pi` and root law `law`, its `token` weighted by every t of `nodes`."""
    n, d_vocab = len(parents), law.shape[-1]
    weight = np.where(np.arange(d_vocab) == token, nodes[:, None], 1.0)  # [node, token]
    matrix = pi[:, None]
    messages = [np.broadcast_to(weight, (len(pi), *weight.shape)).copy() for _ in range(n)]
    total = np.ones((len(pi), len(nodes)))
    matrices, roots = {}, {}
    for k in range(n - 1, -1, -1):
        if parents[k] >= 0:
            sent = (matrix @ messages[k][..., None])[..., 0]
            messages[parents[k]] *= sent
            matrices[k] = matrix * messages[k][..., None, :] / np.maximum(sent, _TINY)[..., None]
        else:
            joint = law[:, None] * messages[k]
            mass = joint.sum(axis=-1)
            total *= mass
            roots[k] = joint / np.maximum(mass, _TINY)[..., None]
    marginals = np.zeros((*total.shape, n, d_vocab))
    for k in range(n):
        parent = parents[k]
        marginals[:, :, k] = roots[k] if parent < 0 else (marginals[:, :, parent, None] @ matrices[k])[..., 0, :]
    return TiltedForest(tuple(parents), token, total, marginals, matrices)
