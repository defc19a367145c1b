"""Why SGD goes first in the default recipe: what Adam's division by small gradients does to layer 1's match.

*Match* is the block of layer 1's W_Q (the paper's A2) between the query's token and the token that layer 0 copies: its
mean diagonal less its mean off-diagonal entry. Where it is positive, layer 0's gradient points at the parents; where
it is negative, away from them. At alpha 1 this explains nothing (docs/RECIPE.md). Two interventions on models that
start from zero:

* *jointly*: Adam at .03 with a cosine on everything for 3,000 steps, with Adam's epsilon 1e-8 as usual, or 1e-2, with
  which small gradients take small steps as under SGD; and with 1e-2 for layer 0 alone, or for the rest alone.
* *transplanted*: layer 0 is held at zero while SGD 3 or Adam .03 trains the rest for 300 steps; one block of the one is
  put into the other; then Adam at .03 with a cosine trains everything for 1,500 steps, the same for all.

A row says the match before the last stage (jointly: at the end), and what that ends with: parents that are the largest
entry of their child's row, mean attention to a parent, excess over the edge posterior in nats (16,384 sequences).

    python benchmarks/why_sgd_first.py --quick
    python benchmarks/why_sgd_first.py --out why.json --seeds 0 1 2 3
"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
import tyro
from from_zero import forest, look_inside
from measuring import NO_RECORD, tell

import causal_circuits as cc
from causal_circuits.models import HookedTransformer

SMALL, LARGE = 1e-8, 1e-2
EPSILONS = {  # of layer 0, of the rest
    "Adam": (SMALL, SMALL),
    "Adam, epsilon .01": (LARGE, LARGE),
    "Adam, epsilon .01 in layer 0 alone": (LARGE, SMALL),
    "Adam, epsilon .01 in the rest alone": (SMALL, LARGE),
}


def match_block(model: HookedTransformer) -> torch.Tensor:
    """The block of A2 between the query's token and the copied one: a view."""
    return cc.models.attention_block(model, 1, 0, "token", "L0H0.token").data


def match(model: HookedTransformer) -> float:
    """Its mean diagonal less its mean off-diagonal entry."""
    block = match_block(model).double()
    n, diagonal = len(block), float(block.trace())
    return diagonal / n - (float(block.sum()) - diagonal) / (n * (n - 1))


def train(
    model: HookedTransformer,
    task: cc.InContextTask,
    optimizer: torch.optim.Optimizer,
    n_steps: int,
    seed: int,
    cosine: bool,
) -> None:
    """Plain training with any torch optimiser: what it does not hold stays as it is."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for step in range(n_steps):
        cc.training.gradient_step(model, task.draws(seed, 1024 * step, 1024))
        optimizer.step()
        if cosine:
            schedule.step()


def jointly(task: cc.InContextTask, epsilons: tuple[float, float], n_steps: int, seed: int) -> HookedTransformer:
    """Everything at once by Adam."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    layer_0, *rest = trained(model)
    groups = [{"params": [layer_0], "eps": epsilons[0]}, {"params": rest, "eps": epsilons[1]}]
    train(model, task, torch.optim.Adam(groups, 0.03), n_steps, seed, cosine=True)
    return model


def trained(model: HookedTransformer) -> tuple[torch.nn.Parameter, ...]:
    """Layer 0's attention, layer 1's, and the read-out."""
    return model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q, model.unembed.W_U


def begun(
    task: cc.InContextTask, optimizer: type[torch.optim.Optimizer], rate: float, n_steps: int, seed: int
) -> HookedTransformer:
    """Layer 0 held at zero while an optimiser trains the rest."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    train(model, task, optimizer(trained(model)[1:], rate), n_steps, seed, cosine=False)
    return model


def with_match(model: HookedTransformer, other: HookedTransformer) -> HookedTransformer:
    """A copy with the other's match."""
    copy = deepcopy(model)
    match_block(copy).copy_(match_block(other))
    return copy


def with_read_out(model: HookedTransformer, other: HookedTransformer) -> HookedTransformer:
    """A copy with the other's read-out."""
    copy = deepcopy(model)
    copy.unembed.W_U.data.copy_(other.W_U)
    return copy


def transplanted(task: cc.InContextTask, n_steps: int, seed: int) -> dict[str, HookedTransformer]:
    """What the last stage begins from."""
    sgd, adam = begun(task, torch.optim.SGD, 3.0, n_steps, seed), begun(task, torch.optim.Adam, 0.03, n_steps, seed)
    return {
        "SGD": sgd,
        "Adam": adam,
        "SGD, with Adam's match": with_match(sgd, adam),
        "SGD, with Adam's read-out": with_read_out(sgd, adam),
        "Adam, with SGD's match": with_match(adam, sgd),
        "Adam, with SGD's read-out": with_read_out(adam, sgd),
    }


def finished(model: HookedTransformer, task: cc.InContextTask, n_steps: int, seed: int) -> dict[str, float]:
    """The match, and what the same last stage makes of a model."""
    found = {"match": match(model)}
    config = cc.TrainConfig((cc.Stage(n_steps, 0.03, schedule="cosine"),), seed=1000 + seed)  # sequences not seen yet
    cc.train(model, task, config, record=NO_RECORD, progress=False)
    return found | look_inside(model, task, seed)


def rows_of(task: cc.InContextTask, seed: int, scale: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Every row of a setting; all stages `scale` times as long as they should be."""
    n_jointly, n_first, n_last = (max(1, round(scale * n)) for n in (3000, 300, 1500))
    for name, epsilons in EPSILONS.items():
        model = jointly(task, epsilons, n_jointly, seed)
        yield f"jointly, {name}", {"match": match(model)} | look_inside(model, task, seed)
    for name, model in transplanted(task, n_first, seed).items():
        yield f"begun by {name}", finished(model, task, n_last, seed)


def main(seeds: tuple[int, ...] = (0,), quick: bool = False, out: Path | None = None) -> None:
    """Print a row for each alpha, seed and intervention; --quick: one small task, a fiftieth of the steps."""
    n_ctx, alphas, scale = (8, (0.1,), 0.02) if quick else (20, (0.1, 1.0), 1.0)
    rows = list[dict[str, object]]()
    for alpha in alphas:
        for seed in seeds:
            task = cc.InContextTask(forest(n_ctx, seed), d_vocab=3, alpha=alpha)
            for what, found in rows_of(task, seed, scale):
                rows.append({"d_vocab": 3, "n_ctx": n_ctx, "alpha": alpha, "seed": seed, "what": what} | found)
                tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
