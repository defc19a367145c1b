"""What the figures of `reproduce_paper.py` share: the job, attention in the paper's metric, reference lines, results.

Not a script.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import networkx as nx
import torch
from paper_training import Run
from results_file import versions, write_results
from scipy.stats import t as student_t

import causal_circuits as cc
from causal_circuits import figures

N_TEST = 16_384
RESULTS = "results.json"


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Attributes:
        out: the folder of all figures.
        deadline: on the clock of `time.perf_counter`.
    """

    out: Path
    seed: int
    faithful: bool
    quick: bool
    quiet: bool
    deadline: float

    def folder(self, figure: str) -> Path:
        """Where a figure's files go."""
        folder = self.out / f"figure_{figure}{'_faithful' if self.faithful else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def checkpoints(self, figure: str, name: str = "run") -> Path:
        """Where a run of this seed and size waits to go on."""
        return self.folder(figure) / "checkpoints" / f"{name}_seed{self.seed}{'_quick' if self.quick else ''}"

    def going_on(self, figure: str, name: str = "run") -> dict[str, Any]:
        """What every long training of a job is told: where it waits to go on, its seed, until when, how quietly."""
        folder = self.checkpoints(figure, name)
        return {"folder": folder, "seed": self.seed, "deadline": self.deadline, "quiet": self.quiet}

    def say(self, text: str) -> None:
        """A line of progress."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @property
    def n_test(self) -> int:
        """Test sequences."""
        return 512 if self.quick else N_TEST

    @property
    def progress(self) -> bool | None:
        """A training's bar: none when quiet, else on a terminal only."""
        return False if self.quiet else None

    def command(self, figure: str) -> str:
        """What makes this figure again."""
        flags = ["--figure", figure, "--seed", str(self.seed)]
        flags += ["--faithful"] if self.faithful else []
        flags += ["--quick"] if self.quick else []
        return "python analyses/reproduce_paper.py " + shlex.join(flags)


class Stopwatch:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """For results.json."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"minutes": wall / 60, "wall_s": wall, "cpu_s": cpu}


def finish(
    job: Job, figure: str, content: Mapping[str, Any], plots: Mapping[str, Any], watch: Stopwatch, run: Run | None
) -> dict[str, Any]:
    """Figures and, last, results.json of one figure; returns its content. Earlier segments count in the times."""
    folder = job.folder(figure)
    for name, plot in plots.items():
        figures.save_figure(plot, folder / "figures" / name)
    times = watch.read()
    if run is not None:  # training may have begun in an earlier call
        earlier = {"wall_s": run.wall_s - run.wall_here_s, "cpu_s": run.cpu_s - run.cpu_here_s}
        times = {key: times[key] + earlier[key] for key in earlier}
        times["minutes"] = times["wall_s"] / 60
    whole = {
        "figure": figure,
        "command": job.command(figure),
        "seed": job.seed,
        "faithful": job.faithful,
        "quick": job.quick,
        "versions": versions(),
        **times,
        **({} if run is None else {"run": run.summary()}),
        **content,
    }
    write_results(whole, folder)
    return whole


def read_results(folder: Path) -> dict[str, Any] | None:
    """A figure's results.json, or None; a ValueError if it is something else."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    found = cc.storage.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no results: delete it, or make it again")
    return found


def block_attention(model: Any, head: int = 0) -> torch.Tensor:
    """The paper's metric: the causal softmax of A1's position-position block, [query_pos, key_pos]."""
    block = cc.attention_block(model, 0, head, "position", "position").detach().double()
    return block.masked_fill(torch.ones_like(block).triu(1).bool(), -torch.inf).softmax(dim=-1).float()


def parent_weights(attention: torch.Tensor, graph: nx.DiGraph) -> dict[tuple[int, int], float]:
    """(parent, child) -> attention [query_pos, key_pos] on the parent, by child."""
    edges = sorted(cc.latent_edges(graph), key=lambda edge: (edge[1], edge[0]))
    return {(parent, child): float(attention[child, parent]) for parent, child in edges}


def by_position(weights: Mapping[tuple[int, int], float]) -> list[tuple[int, float]]:
    """(child, weight) of every edge: the points of a figure."""
    return [(child, weight) for (_, child), weight in weights.items()]


def measure_forest(model: Any, task: cc.InContextTask, job: Job, seed: int) -> dict[str, Any]:
    """Graph, attention in both metrics and loss of one model trained on a forest."""
    test = task.sample(job.n_test, seed=(seed, 2))
    block = parent_weights(block_attention(model), task.graph)
    real = parent_weights(cc.mean_attention(model, test.tokens[:4096])[0, 0], task.graph)
    found = cc.extract_graph(model, task, n_sequences=2000 if job.quick else 20_000, seed=seed + 1)
    recovery, alone = (cc.compare_graphs(task.graph, graph) for graph in (found, found.from_attention))
    losses = cc.evaluate(model, test)
    posterior = cc.cross_entropy(task.bayes_predictor(test.tokens), test.target_probs)
    return {
        "edges": len(block),
        "recovered": len(block) - len(recovery.missing),
        "false_edges": len(recovery.false),
        "recovered_attention_alone": len(block) - len(alone.missing),
        "false_edges_attention_alone": len(alone.false),
        "mean_parent_attention": fmean(real.values()),
        "min_parent_attention": min(real.values()),
        "mean_block_attention": fmean(block.values()),
        "min_block_attention": min(block.values()),
        "above_half_attention": sum(weight > 0.5 for weight in real.values()),
        "above_half_block": sum(weight > 0.5 for weight in block.values()),
        "loss": float(losses.mean()),
        "loss_error": float(losses.std() / len(test) ** 0.5),
        "edge_posterior": float(posterior.mean()),
        "excess": float((losses - posterior).mean()),
        "excess_error": float((losses - posterior).std() / len(test) ** 0.5),
        "parents": cc.graph_parents(task.graph),
        "parent_attention": [
            {"parent": parent, "child": child, "attention": real[parent, child], "block": weight}
            for (parent, child), weight in block.items()
        ],
    }


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, with its 95% interval by Student's t; NaN ends with fewer than two pairs.

    >>> Paired.of([1.0, 2.0, 3.0]).mean
    2.0
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Paired":
        """From the differences, one a pair."""
        n, mean = len(differences), fmean(differences)
        if n < 2:
            return cls(mean, float("nan"), float("nan"), n)
        half = float(student_t.ppf(0.975, n - 1)) * stdev(differences) / n**0.5
        return cls(mean, mean - half, mean + half, n)

    @property
    def place(self) -> str:
        """Where the interval lies beside zero: "above", "below", "level" or, without an interval, "unknown"."""
        if self.n < 2:
            return "unknown"
        return "above" if self.low > 0 else "below" if self.high < 0 else "level"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def weight_panels(model: Any, graph: nx.DiGraph) -> list[figures.WeightBlocks]:
    """The true adjacency, A1 of every head, A2 of every head and W_U, their slots named."""
    slots = [(slot.name, slot.stop - slot.start) for slot in cc.slots(model).values()]
    n_ctx, d_vocab = model.cfg.n_ctx, model.cfg.d_vocab
    adjacency = torch.zeros(n_ctx, n_ctx)
    for query, key in cc.graphs.attention_cells(graph):
        adjacency[query, key] = 1.0
    position = [("position", n_ctx)]
    panels = [figures.WeightBlocks("True edges", adjacency, position, position, "child", "parent")]
    heads = cc.live_heads(model)
    width = d_vocab + n_ctx
    for layer in (0, 1):
        here = [name for name in slots if not name[0].startswith(f"L{layer}") and not name[0].startswith("L1")]
        for head in [head for at, head in heads if at == layer]:
            weights = model.blocks[layer].attn.W_Q[head, :width, :width].detach()
            title = f"A{layer + 1} of head {head}" if len(heads) > 2 else f"A{layer + 1}"
            panels.append(figures.WeightBlocks(title, weights, here, here))
        width *= 1 + sum(at == layer for at, _ in heads)
    tokens = [("token", d_vocab)]
    panels.append(figures.WeightBlocks("W_U", model.W_U.detach(), slots, tokens, "residual slot", "predicted"))
    return panels


def head_roles(model: Any, task: cc.InContextTask, seed: int) -> list[dict[str, Any]]:
    """Role and scores of every head."""
    return [
        {"head": f"L{h.layer}H{h.head}", "role": h.role, "parent": h.parent_score, "induction": h.induction_score}
        for h in cc.detect_induction_heads(model, task, seed=seed)
    ]


def roles_text(roles: Sequence[Mapping[str, Any]]) -> str:
    """'L0H0 previous-token, L1H0 induction'."""
    return ", ".join(f"{role['head']} {role['role']}" for role in roles)
