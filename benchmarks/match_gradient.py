"""The derivative of order k of the model beside its prediction from data, for k = 1, 2, 3; and what order 1 sees.

For random graphs of k parents: correlation and slope of `measured_match_gradient` on `match_gradient` over all keys and
positions, and how many children have their parents as the row's maximum, at three strengths of match and read-out. Then
for 30 random graphs how often the k positions t with the largest sum over rows of the first-order gain, the covariance
of a token's gain with one match x_j = x_t, are the target's parents, and how often the matches of all orders name them.

    python benchmarks/match_gradient.py
"""

import numpy as np
import torch
from measuring import random_parents
from several_parents import random_task

import causal_circuits as cc
from causal_circuits.information import key_sets, match_gradient
from causal_circuits.training import measured_match_gradient

SIZES = {1: (10, 3), 2: (8, 3), 3: (7, 2)}  # n_ctx, d_vocab


def random_graph(k: int, n_ctx: int, seed: int) -> cc.InContextTask:
    """Three tenths of the positions are roots."""
    graph = random_parents(np.random.default_rng(seed), n_ctx, k)
    return cc.InContextTask(graph, d_vocab=SIZES[k][1], alpha=0.3)


def compare(task: cc.InContextTask, strength: float) -> str:
    """Correlation, slope and row maxima."""
    target, batch, n_ctx = task.target_parents, task.sample(8000), task.n_ctx
    k = len(target)
    model = cc.models.warm_readout(
        cc.disentangled_transformer(task.d_vocab, n_ctx, (k, 1), dtype=torch.float64), strength
    )
    for head in range(k):
        for block in cc.models.match_blocks(model, head, by_copy=True):
            block.copy_(strength * torch.eye(task.d_vocab))
    measured = measured_match_gradient(model, batch, target)
    predicted, sets = match_gradient(batch, target) * strength ** (k + 1), key_sets(n_ctx - 1, k)
    earlier = sets.max(axis=1)[:, None] < np.arange(n_ctx - 1)
    x, y = predicted[:, :-1][earlier], measured[:, :-1][earlier]
    children = [i for i in range(n_ctx - 1) if task.graph.in_degree(i) == k and i not in target]
    best = {i: tuple(sets[np.where(earlier[:, i], measured[:, i], -np.inf).argmax()]) for i in children}
    hits = sum(best[i] == cc.graphs.parents_of(task.graph, i) for i in children)
    return f"corr {np.corrcoef(x, y)[0, 1]:.4f}, slope {x @ y / (x @ x):.4f}, {hits} of {len(children)} row maxima"


def first_order(batch: cc.Batch, k: int) -> tuple[int, ...]:
    """The k positions t of the largest sum over rows of max_j Cov(gain of x_i, x_j = x_t)."""
    tokens, n_ctx, d_vocab = batch.tokens, batch.tokens.shape[1], batch.target_probs.shape[1]
    gains = d_vocab * torch.gather(batch.target_probs.double(), 1, tokens) - 1
    gains -= gains.mean(dim=1, keepdim=True)
    gains -= gains.mean(dim=0)
    support = []
    for t in range(n_ctx):
        same = (tokens == tokens[:, [t]]).double()
        support.append(float((gains.T @ same).tril(-1)[:-1].amax(dim=1).clamp(min=0).sum()))
    return tuple(sorted(np.argsort(support)[-k:].tolist()))


def main() -> None:
    """Print both tables."""
    for k, (n_ctx, _) in SIZES.items():
        for strength in (1e-3, 0.5, 3.0):
            print(
                f"k {k}, match and read-out {strength}: {compare(random_graph(k, n_ctx, seed=1), strength)}", flush=True
            )
    for k in (2, 3):
        found = {"order 1": 0, "order k": 0}
        for seed in range(15):
            task = random_task(np.random.default_rng((seed, k)), k, n_ctx=(12, 18), alpha=(0.1, 0.1))
            batch = task.sample(10_000, seed=seed)
            model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (k, 1))
            found["order 1"] += first_order(batch, k) == task.target_parents
            found["order k"] += cc.training.start_from_matches(model, batch).target_parents == task.target_parents
        print(f"k {k}, target's parents named in 15 graphs: {found}", flush=True)


if __name__ == "__main__":
    main()
