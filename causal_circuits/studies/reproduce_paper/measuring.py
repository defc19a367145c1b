"""What the figures of the paper share: settings, trainings measured on the way, attention in its metric, losses."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx
import torch

import causal_circuits as cc
from causal_circuits.pages import Section

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper, made again.

    Attributes:
        content: of its results.json, beside command, seed, versions and times.
        what, ours, theirs, verdict: what was trained, both sides' numbers and how they compare, in words.
        sections: its pictures.
        models: name of a folder -> function that writes a model there.
    """

    content: Row
    what: str
    ours: str
    theirs: str
    verdict: str
    sections: Sequence[Section]
    models: Mapping[str, Callable[[Path], Any]]


def block_attention(model: cc.models.HookedTransformer, head: int = 0) -> torch.Tensor:
    """The paper's metric: the causal softmax of the position block of layer 0's weights, [query_pos, key_pos]."""
    block = cc.models.attention_block(model, 0, head, "position", "position").detach().double()
    return block.masked_fill(torch.ones_like(block).triu(1).bool(), -torch.inf).softmax(dim=-1).float()


def parent_weights(attention: torch.Tensor, graph: nx.DiGraph) -> dict[tuple[int, int], float]:
    """(parent, child) -> attention [query_pos, key_pos] on the parent, by child."""
    edges = sorted(cc.latent_edges(graph), key=lambda edge: (edge[1], edge[0]))
    return {(parent, child): float(attention[child, parent]) for parent, child in edges}


def excess(model: cc.models.HookedTransformer, task: cc.InContextTask, test: cc.Batch) -> dict[str, float]:
    losses = cc.evaluate(model, test)
    posterior = cc.tasks.cross_entropy(task.bayes_predictor(test.tokens), test.target_probs)
    return {
        "loss": float(losses.mean()),
        "loss_error": cc.interventions.standard_error(losses),
        "edge_posterior": float(posterior.mean()),
        "excess": float((losses - posterior).mean()),
        "excess_error": cc.interventions.standard_error(losses - posterior),
    }


def edges_found(row: Row) -> str:
    return (
        f"{row['recovered']} of {row['edges']} parents, {row['false_edges']} false with the information test, "
        f"{row['recovered_attention_alone']} and {row['false_edges_attention_alone']} false by attention alone"
    )


def graph_found(row: Row) -> str:
    whole = row["recovered"] == row["edges"] and not row["false_edges"]
    return (
        f"{'every parent found, none' if whole else 'not every parent found, or some'} false with the information test"
    )


def place(low: float, high: float) -> str:
    """Where an interval lies beside zero."""
    return "above" if low > 0 else "below" if high < 0 else "level with"


def head_roles(model: cc.models.HookedTransformer, task: cc.InContextTask, seed: int) -> list[dict[str, Any]]:
    return [
        {"head": f"L{h.layer}H{h.head}", "role": h.role, "parent": h.parent_score, "induction": h.induction_score}
        for h in cc.detect_induction_heads(model, task, seed=seed)
    ]


def roles_text(roles: Sequence[Row]) -> str:
    return ", ".join(f"{role['head']} {role['role']}" for role in roles)


FORMAT = "causal_circuits.measured/1"
Models = Sequence[cc.models.HookedTransformer]
Tasks = Sequence[cc.InContextTask]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Job:
    """The settings of a cell; `began` is when it was started (after a kill: again)."""

    seed: int
    faithful: bool
    quick: bool
    scratch: Path | None
    progress: bool | None
    began: tuple[float, float] = field(default_factory=clocks)

    def test(self, task: cc.InContextTask, member: int = 0) -> cc.Batch:
        return task.sample(512 if self.quick else 16_384, seed=(self.seed + member, 2))

    def train(
        self, models: Models, tasks: Tasks, config: cc.TrainConfig, every: int, measure: Callable[[], dict[str, float]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return train_measured(
            models, tasks, replace(config, seed=self.seed), every, measure, self.scratch, self.progress
        )

    def spent(self) -> dict[str, float]:
        wall_s, cpu_s = (now - began for now, began in zip(clocks(), self.began, strict=True))
        return {"wall_s": wall_s, "cpu_s": cpu_s}


def train_measured(
    models: Models,
    tasks: Tasks,
    config: cc.TrainConfig,
    every: int,
    measure: Callable[[], dict[str, float]],
    scratch: Path | None,
    progress: bool | None = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Train models side by side; measure and save every so many steps, and at the end; one that was killed goes on.

    Member m draws its data from the seed 1000 config.seed + m; what `measure` returns is kept beside the checkpoints.
    Returns the losses [member, step], and for results.json recipe, times (since the last kill) and history.
    """
    (wall, cpu), measured = clocks(), dict[int, dict[str, float]]()
    if scratch is not None and (scratch / "measured.json").is_file():
        kept, _ = cc.storage.read_checked(scratch / "measured.json", FORMAT, "list of measurements")
        measured = {int(step): found for step, found in kept["measured"].items()}

    def look(step: int, model: cc.models.HookedTransformer) -> None:
        if model is models[0]:
            measured[step] = measure()
            if scratch is not None:
                cc.storage.write_checked(scratch, "measured", {"format": FORMAT, "measured": measured})

    steps = tuple(sorted({*range(every, config.steps, every), config.steps}))
    records = cc.train_ensemble(
        models,
        tasks,
        [replace(config, seed=1000 * config.seed + member) for member in range(len(models))],
        record=cc.RecordAt(steps, attention=False, score_gradients=False, layers=(0,)),
        progress=progress,
        on_record=look,
        checkpoints=None if scratch is None else cc.Checkpoints(scratch, every),
    )
    losses = torch.stack([record.losses for record in records])
    recipe = asdict(config.stages[0])
    del recipe["train"]
    cpu_s = time.process_time() - cpu
    return losses, {
        "recipe": recipe | {"batch_size": config.batch_size},
        "steps_done": config.steps,
        "complete": True,
        "train_wall_s": time.perf_counter() - wall,
        "train_cpu_s": cpu_s,
        "steps_per_cpu_s": config.steps / cpu_s,
        "history": [
            {"step": step, "train_loss": float(losses[:, before:step].mean()), **measured[step]}
            for before, step in zip((0, *steps), steps, strict=False)
        ],
    }
