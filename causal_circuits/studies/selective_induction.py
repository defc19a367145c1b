"""Selective induction heads: three attention layers can find the lag of a chain in context, two do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.stats  # type: ignore[import-untyped]
import torch
from matplotlib.figure import Figure
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.figures.style import new_grid
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid

Row = dict[str, Any]
Blocks = dict[str, list[tuple[str, ...]]]
N_TEST = 2048
WEAK = 1.0  # of the planted weights that select, where gradients are taken: larger ones saturate layer 2
SELECTIVE, DEEP, PLANTED = "three layers, mechanism's blocks", "three layers", "planted"
GIVEN = "three layers, blocks, layer 1 given"
GRADIENTS = tuple(f"gradient layer {at}" for at in ("0 with log P", "1 at residues", "2 at the candidates"))
ORDINARY = {"ordinary, two layers": 2, "ordinary, three layers": 3}
# Learning rate of Adam and scale of the initial weights, chosen on seeds 100 to 104.
APART = 10.0  # initial weights of layer 1 are so many times as large, and sum to zero over heads
RECIPES = {"blocks": (0.1, 0.05), "disentangled": (0.02, 0.02), "ordinary": (0.005, 0.0)}


def architectures(lags: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name -> heads of each layer: all of two layers with one head or as many as lags, and of three the paper's."""
    k = n_residues(lags)
    two = {f"two layers, {a} and {b} heads": (a, b) for a in (1, k) for b in (1, k)}
    return {**two, DEEP: (1, k, 1), SELECTIVE: (1, k, 1), GIVEN: (1, k, 1)}


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Where the lag of a chain is latent, three layers can select it in context, and two trained layers do not.

    "Selective induction heads" (D'Angelo et al. 2025, arXiv 2509.08184): one transition matrix, a lag drawn anew in
    every sequence. Layer 0 attends to the candidates for a token's parent by their likelihood; layer 1, a head for each
    residue of positions, takes the mean over the sequence; layer 2 copies the latest token at the best lag. Written by
    hand, these layers come near the loss of maximum likelihood, and no two trained layers do; whether training finds
    them, in all weights or in the blocks that they use, is measured. Losses are read between that of Bayes (0) and of
    all lags alike (1).

        python analyses/selective_induction.py            # lags 1 and 2, five seeds
        python analyses/selective_induction.py --quick    # one seed, fewer steps
        python analyses/selective_induction.py --lags 1 2 3 --n-ctx 24 --steps 3000
    """

    QUICK: ClassVar = {"seeds": 1, "steps": 300}

    lags: tuple[int, ...] = (1, 2)  #: the lags that are drawn
    d_vocab: int = 4  #: number of tokens
    n_ctx: int = 16  #: length of the sequences
    seeds: int = 5  #: independent trainings of each architecture, with a transition matrix each
    steps: int = 1500  #: of Adam
    batch_size: int = 128  #: sequences a step

    def check(self) -> None:
        """Lags between which there is something to select, in sequences that show them."""
        at_least(2, d_vocab=self.d_vocab)
        at_least(1, lags=self.lags, seeds=self.seeds, steps=self.steps, batch_size=self.batch_size)
        if len(set(self.lags)) < max(2, len(self.lags)):
            raise ValueError(f"--lags must be two or more different ones: got {self.lags}")
        at_least(max(self.lags) + n_residues(self.lags), n_ctx=self.n_ctx)

    def cells(self) -> list[Cell]:
        """A training each, and a planted circuit for each seed."""
        seeds = range(self.seed, self.seed + self.seeds)
        sizes = {"lags": list(self.lags), "d_vocab": self.d_vocab, "n_ctx": self.n_ctx}
        how = {"steps": self.steps, "batch_size": self.batch_size}
        names = {"architecture": (*architectures(self.lags), *ORDINARY), "seed": seeds}
        trainings = [replace(cell, progress=True) for cell in grid(measure_training, names, cores=1, **sizes, **how)]
        return [*grid(measure_planted, {"seed": seeds}, cores=1, **sizes), *trainings]

    def report(self, rows: Mapping[str, Row]) -> Report:
        """Losses of all architectures, the heads and the formation of the mechanism."""
        every = list(rows.values())
        table = pd.DataFrame([{key: value for key, value in row.items() if np.isscalar(value)} for row in every])
        share = table.pivot(index="seed", columns="architecture", values="share")
        planted = [row for row in every if row["architecture"] == PLANTED]
        selective = [row for row in every if row["architecture"] == SELECTIVE]
        references = {
            name: fmean(row[name] for row in planted) for name in ("maximum likelihood", "normalized likelihood")
        }
        return Report(
            title="Selective induction heads",
            checks=checks(share, planted, selective),
            results={"rows": every},
            sections=[
                Section(
                    "Who selects the lag",
                    "0 is exact Bayes over lags, 1 all lags alike; a dot is a training.",
                    figures={"excess": figures.plot_groups(by_seed(share), levels=references, xlabel=SHARE)},
                ),
                Section(
                    "The three layers",
                    "Layer 0 looks at every candidate; each head of layer 1 at positions of one residue; layer 2's "
                    "query at the token that the sequence's lag makes the parent.",
                    figures={"patterns": plot_patterns(selective[0]), "patterns_planted": plot_patterns(planted[0])},
                ),
                Section(
                    "When it forms",
                    "0 is where a layer starts, 1 where it ends; means over seeds.",
                    figures={"formation": plot_formation(selective)},
                    table=pd.DataFrame([{"seed": row["seed"], **row["onsets"]} for row in selective]),
                ),
                Section(
                    "Which head does what",
                    "The share of the way from Bayes to all lags alike that is lost without a head (its mean in its "
                    "place).",
                    table=pd.DataFrame(
                        [{"seed": row["seed"], "all heads": row["share"], **row["without"]} for row in selective]
                    ),
                ),
                Section("All", "Losses are nats above exact Bayes.", table=table),
            ],
            summary=[(name, interval_text(share[name])) for name in share.columns],
        )


SHARE = "loss: 0 Bayes, 1 all lags alike"


def measure_planted(seed: int, lags: list[int], d_vocab: int, n_ctx: int) -> Row:
    """The circuit written by hand, its loss, and the gradient at each layer while that layer alone is empty."""
    task = cc.tasks.LagTask(n_ctx, d_vocab, tuple(lags), matrix_seed=seed)
    test, model = task.sample(N_TEST, seed=(seed, 7)), planted(task)
    scale = references(task, test)
    return {
        "architecture": PLANTED,
        "seed": seed,
        "share": scale(float(cc.evaluate(model, test).mean())),
        **{name: scale(loss) for name, loss in predictor_losses(task, test).items()},
        "patterns": patterns(model, task, seed),
        **first_gradients(task, test),
    }


def measure_training(
    architecture: str,
    seed: int,
    lags: list[int],
    d_vocab: int,
    n_ctx: int,
    steps: int,
    batch_size: int,
    progress: bool,
) -> Row:
    """One training; of the mechanism's blocks also when each layer formed, and what is lost without each head."""
    task = cc.tasks.LagTask(n_ctx, d_vocab, tuple(lags), matrix_seed=seed)
    test = task.sample(N_TEST, seed=(seed, 7))
    kind = {SELECTIVE: "blocks", GIVEN: "blocks"}.get(
        architecture, "ordinary" if architecture in ORDINARY else "disentangled"
    )
    rate, scale = RECIPES[kind]
    blocks = mechanism_blocks(n_residues(lags)) if kind == "blocks" else None
    model = new_model(architecture, task, scale, blocks, seed)
    config = cc.TrainConfig.joint(steps, rate, batch_size=batch_size, seed=seed, blocks=blocks)
    states: list[Row] = []
    watch = partial(watch_layers, states=states, task=task, seed=seed)
    watched = architecture == SELECTIVE
    given = {1: cc.mean_attention(planted(task), test.tokens[:8])[1]} if architecture == GIVEN else {}
    at = cc.RecordAt(steps=moments(steps) if watched else (steps,), attention=False, score_gradients=False)
    on_record = watch if watched else None
    cc.train(model, task, config, record=at, on_record=on_record, progress=progress, attention=given)
    share = references(task, test)
    with cc.training.clamped_attention(model, given):
        loss = float(cc.evaluate(model, test).mean())
    row = {"architecture": architecture, "seed": seed, "share": share(loss)}
    if not watched:
        return row
    layers = {
        f"layer {layer}": [head for head in cc.models.live_heads(model) if head[0] == layer] for layer in range(3)
    }
    heads = {f"L{layer}H{head}": [(layer, head)] for layer, head in layers_of(layers, 1)}
    without = {name: share(cc.ablate_heads(model, test, cut).loss) for name, cut in {**layers, **heads}.items()}
    onsets = {name: onset(states, name) for name in states[0] if name != "step"}
    return {**row, "without": without, "states": states, "onsets": onsets, "patterns": patterns(model, task, seed)}


def layers_of(layers: Mapping[str, list[tuple[int, int]]], layer: int) -> list[tuple[int, int]]:
    """The heads of one layer."""
    return layers[f"layer {layer}"]


def new_model(
    architecture: str, task: cc.tasks.LagTask, scale: float, blocks: Blocks | None, seed: int
) -> cc.models.HookedTransformer:
    """The architecture with small random weights: from zero, heads of one layer would stay alike."""
    if architecture in ORDINARY:
        return cc.models.ordinary_transformer(
            task.d_vocab,
            task.n_ctx,
            d_model=32,
            d_head=16,
            d_mlp=0,
            n_layers=ORDINARY[architecture],
            n_heads=n_residues(task.lags),
            seed=seed,
        )
    heads = architectures(task.lags)[architecture]
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, heads, init_scale=scale, seed=seed)
    for name, places in cc.training.trained_blocks(model, blocks or {}).items():
        parameter = cc.training.trainable_parameters(model)[name].data
        kept = torch.zeros_like(parameter)
        for place in places:
            kept[place if name == "W_U" else (slice(None), *place)] = 1.0
        parameter *= kept
    if blocks:  # heads of layer 1 start apart: two that start alike settle on the same residue and cover half of it
        layer_1 = model.blocks[1].attn.W_Q.data
        layer_1.copy_(APART * (layer_1 - layer_1.mean(dim=0)))
    return model


def n_residues(lags: Sequence[int]) -> int:
    """The smallest m for which the lags differ modulo m: so many heads of layer 1 tell their candidates apart."""
    return next(m for m in range(len(set(lags)), max(lags) + 2) if len({lag % m for lag in lags}) == len(set(lags)))


def mechanism_blocks(n_heads: int) -> Blocks:
    """The blocks of weights through which the three layers select a lag."""
    means = [(f"L1H{head}.L0H0.position", "position") for head in range(n_heads)]
    return {
        "W_Q.0": [("token", "token"), ("position", "position")],
        "W_Q.1": [("position", "position")],
        "W_Q.2": [("position", "position"), *means],
        "W_U": [("L2H0.token",)],
    }


@torch.no_grad()
def planted(task: cc.tasks.LagTask, looking: float = 20.0, selecting: float = 100.0) -> cc.models.HookedTransformer:
    """Three layers that select a lag, written by hand.

    Layer 0, position i: attention to i - k is the share of lag k in the likelihood of token i. Layer 1, head r, last
    position: the mean of these rows over positions i of residue r; what it copies at position p belongs to the lag k
    with p = r - k modulo m. Layer 2 adds them up for each lag, attends to n_ctx - k, and W_U reads log P there.
    """
    n, m = task.n_ctx, n_residues(task.lags)
    model = cc.disentangled_transformer(task.d_vocab, n, (1, m, 1))
    log_matrix = torch.from_numpy(np.log(task.matrix)).float()
    block = partial(cc.models.attention_block, model)
    block(0, 0, "token", "token").copy_(log_matrix.T)
    for lag in task.lags:
        block(0, 0, "position", "position").diagonal(-lag).fill_(looking)
        block(2, 0, "position", "position")[n - 1, n - lag] = looking
    for head in range(m):
        summed = torch.arange(max(task.lags), n)
        block(1, head, "position", "position")[n - 1, summed[summed % m == head]] = looking
        for lag in task.lags:
            belongs = torch.arange(n) % m == (head - lag) % m
            block(2, 0, f"L1H{head}.L0H0.position", "position")[belongs, n - lag] = selecting
    model.unembed.W_U[cc.models.slots(model)["L2H0.token"].slice] = log_matrix
    return model


def first_gradients(task: cc.tasks.LagTask, test: cc.Batch) -> Row:
    """Minus the gradient in one layer's scores while that layer alone is empty: does it point at the mechanism?

    Layer 0: its correlation with log P in the weights between tokens; summed by distance too, which tells a distance
    from others by its residue alone. Layer 1: does each head's favour the positions of its residue. Layer 2: does it
    favour the candidates.
    """
    model, n, m, found = planted(task, selecting=WEAK), task.n_ctx, n_residues(task.lags), {}
    for layer in range(3):
        kept = model.W_Q[layer].clone()
        model.blocks[layer].attn.W_Q.data.zero_()
        found[layer] = cc.training.take_snapshot(model, test).score_gradients[layer]  # type: ignore[index]
        if layer == 0:
            cc.training.gradient_step(model, test)
            tokens = -model.blocks[0].attn.W_Q.grad[0, : task.d_vocab, : task.d_vocab].T.double().numpy()
        model.blocks[layer].attn.W_Q.data.copy_(kept)
    by_distance = torch.stack([found[0][0].diagonal(-distance).sum() for distance in range(n)])
    summed = torch.arange(max(task.lags), n)
    last = [found[1][head, -1, summed] for head in range(m)]
    return {
        "gradient layer 0 with log P": float(np.corrcoef(tokens.ravel(), np.log(task.matrix).ravel())[0, 1]),
        "gradient layer 1 at residues": all(
            bool(row[summed % m == head].mean() > row[summed % m != head].mean()) for head, row in enumerate(last)
        ),
        "gradient layer 2 at the candidates": set(found[2][0, -1].topk(len(task.lags)).indices.tolist())
        == {n - lag for lag in task.lags},
        "gradient by distance": by_distance.tolist(),
    }


def predictor_losses(task: cc.tasks.LagTask, test: cc.Batch) -> dict[str, float]:
    """The mean cross-entropy of each predictor of the task, nats."""
    laws = task.predictors(test.tokens).items()
    return {name: float(cc.tasks.cross_entropy(law, test.target_probs).mean()) for name, law in laws}


def references(task: cc.tasks.LagTask, test: cc.Batch) -> Any:
    """Loss -> where it lies between exact Bayes (0) and the average over lags (1)."""
    losses = predictor_losses(task, test)
    return lambda loss: (loss - losses["Bayes"]) / (losses["lag average"] - losses["Bayes"])


def patterns(model: cc.models.HookedTransformer, task: cc.tasks.LagTask, seed: int) -> dict[str, Any]:
    """Layer 0's mean pattern, the last rows of layer 1's heads, and layer 2's last row in sequences of each lag."""
    of_lag = {lag: replace(task, lags=(lag,)).sample(512, seed=(seed, 8)).tokens for lag in task.lags}
    seen = {lag: cc.mean_attention(model, tokens) for lag, tokens in of_lag.items()}
    mean: Tensor = torch.stack(list(seen.values())).mean(dim=0)
    return {
        "layer 0": mean[0, 0],
        "layer 1": mean[1, : n_residues(task.lags), -1],
        "layer 2": torch.stack([attention[2, 0, -1] for attention in seen.values()]),
    }


def watch_layers(
    step: int, model: cc.models.HookedTransformer, states: list[Row], task: cc.tasks.LagTask, seed: int
) -> None:
    """How much of each layer's part is there, at a recorded step."""
    seen, m, lags = patterns(model, task, seed), n_residues(task.lags), task.lags
    rows = torch.arange(max(lags), task.n_ctx)
    shares = torch.stack([seen["layer 1"][:, rows[rows % m == r]].sum(dim=1) for r in range(m)], dim=1)
    states.append(
        {
            "step": step,
            "layer 0 at the lags": sum(float(seen["layer 0"][rows, rows - lag].mean()) for lag in lags),
            "layer 1 by residue": float((shares / shares.sum(dim=1, keepdim=True)).max(dim=0).values.mean()),
            "layer 2 at the parent": fmean(
                float(row[task.n_ctx - lag]) for lag, row in zip(lags, seen["layer 2"], strict=True)
            ),
        }
    )


def moments(steps: int) -> tuple[int, ...]:
    """Twenty steps, dense at the start."""
    return tuple(sorted({round(steps * (k / 20) ** 2) for k in range(21)}))


def onset(states: list[Row], name: str) -> int | None:
    """The first recorded step at which a quantity is half way from where it starts to where it ends."""
    middle = (states[0][name] + states[-1][name]) / 2
    return next((state["step"] for state in states if state[name] > middle), None)


def checks(share: pd.DataFrame, planted: list[Row], selective: list[Row]) -> list[Check]:
    """What is claimed, each with what decides it."""
    two = share[[name for name in share.columns if name.startswith("two layers")]].min(axis=1)
    gap, ordinary = two - share[SELECTIVE], share["ordinary, two layers"] - share["ordinary, three layers"]
    likelihood, hand = [row["maximum likelihood"] for row in planted], [row["share"] for row in planted]
    above = two - hand
    off = max(row["share"] - row["normalized likelihood"] for row in planted)
    cut = {name: [row["without"][name] - row["share"] for row in selective] for name in selective[0]["without"]}
    told = {name: sum(bool(row[name] > 0) for row in planted) for name in GRADIENTS}
    return [
        Check(
            off < 0.02,
            "The planted circuit is as good as the predictor it implements",
            f"at most {off:.3f} above the lag of the largest mean share of the likelihood",
        ),
        Check(
            interval(above)[0] > 0,
            "The planted circuit selects the lag, and no two trained layers do as well",
            f"{interval_text(hand)} (maximum likelihood {np.mean(likelihood):.3f}); the best of two layers lies "
            f"{interval_text(above)} above",
        ),
        Check(
            "passed" if interval(gap)[0] > 0 else "refuted",
            "Trained in the mechanism's blocks of weights, three layers are better than two",
            f"in {(gap > 0).sum()} of {len(gap)} seeds; {interval_text(share[SELECTIVE])}; the best of two layers lies "
            f"{interval_text(gap)} above",
        ),
        Check(
            "passed" if bool((two > share[GIVEN]).all()) else "refuted",
            "With layer 1's pattern given, training finds the other layers: better than two in every seed",
            f"{interval_text(share[GIVEN])}; the best of two layers lies {interval_text(two - share[GIVEN])} above",
        ),
        Check(
            "passed" if interval(two - share[DEEP])[0] > 0 else "refuted",
            "Trained in all its weights, three layers are better than two",
            f"{interval_text(share[DEEP])}; the best of two layers lies {interval_text(two - share[DEEP])} above",
        ),
        Check(
            "passed" if interval(ordinary)[0] > 0 else "refuted",
            "An ordinary transformer of three layers is better than one of two",
            f"by {interval_text(ordinary)}",
        ),
        Check(
            "passed" if all(min(costs) > 0.1 for costs in cut.values()) else "refuted",
            "Every head of the mechanism is needed",
            "; ".join(f"without {name} {interval_text(costs)} more" for name, costs in cut.items()),
        ),
        Check(
            min(told.values()) == len(planted),
            "With one layer empty and the others planted, that layer's first gradient points at the mechanism",
            "; ".join(f"{name.removeprefix('gradient ')} in {n} of {len(planted)}" for name, n in told.items()),
        ),
    ]


def interval(values: Sequence[float] | pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; without width for one value."""
    values = np.asarray(values, dtype=float)
    half = (
        scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    )
    return float(values.mean() - half), float(values.mean() + half)


def interval_text(values: Sequence[float] | pd.Series) -> str:
    """Mean and interval."""
    low, high = interval(values)
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def by_seed(share: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Seed -> architecture -> share, the worst architecture first."""
    order = share.mean().sort_values(ascending=False).index
    return {f"seed {seed}": {name: float(share.loc[seed, name]) for name in order} for seed in share.index}


def plot_patterns(row: Row) -> Figure:
    """The patterns of the three layers side by side."""
    seen = {name: np.asarray(pattern) for name, pattern in row["patterns"].items()}
    titles = {"layer 0": "layer 0: query and key", "layer 1": "layer 1: head and key, last query"}
    titles["layer 2"] = "layer 2: sequence's lag and key, last query"
    figure, axes = new_grid(3, 3, 3.8, 3.2)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        image = ax.imshow(seen[name], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(title=f"{row['architecture']}\n{title}" if name == "layer 0" else title, xlabel="key position")
        ax.set_yticks(range(len(seen[name]))) if name != "layer 0" else None
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def plot_formation(selective: list[Row]) -> Any:
    """Each layer's part over training."""
    means = pd.DataFrame([state for row in selective for state in row["states"]]).groupby("step").mean()
    curves = {name: list(zip(means.index + 1, means[name], strict=True)) for name in means.columns}
    return figures.plot_curves(curves, xlabel="step + 1", ylabel="attention")
