"""What `induction_head.py` and `causal_graph.py` share: train, recover the graph, detect the heads, prove, report.

Not a script. `run` is the whole job in order; everything below it is how the results are written down.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import networkx as nx
import torch
from command_line import BEGAN, OneLineParser

import causal_circuits as cc
from causal_circuits import figures

N_TEST = 16_384
N_PROOF = 1_024
N_GRADIENT = 8_192
BETA_0 = 0.1  # layer 2's scale in the reduced model whose first gradient is compared with theory, to first order in it


def run_from_arguments(
    parser: OneLineParser, arguments: argparse.Namespace, make_graph: Callable[[argparse.Namespace], nx.DiGraph]
) -> int:
    """Check the arguments, run the job, print the table; bad input ends in one line and status 2."""
    try:
        if arguments.steps < 2:
            raise ValueError(f"--steps must be at least 2: got {arguments.steps}")
        if arguments.seed < 0:
            raise ValueError(f"--seed must be 0 or more: got {arguments.seed}")
        graph = make_graph(arguments)
        if not cc.latent_edges(graph):
            raise ValueError(
                "the graph has no edge between context positions: there is nothing to recover; name a parent"
            )
        task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        check_writable(arguments.out)
    except ValueError as error:
        parser.error(str(error))
    findings = run(task, seed=arguments.seed, steps=arguments.steps, quiet=arguments.quiet)
    command = f"python analyses/{parser.prog} " + shlex.join(sys.argv[1:])
    write(findings, arguments, command.strip())  # sets findings.seconds
    print(table(findings, arguments.out))
    return 0


def check_writable(folder: Path) -> None:
    """Make the folder if it is missing; a ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be written to: {folder}: {error.strerror}") from error


@dataclass
class Findings:
    """Everything that one run found out."""

    task: cc.InContextTask
    config: cc.TrainConfig
    model: object
    record: cc.TrainingRecord
    references: cc.ReferenceLosses
    test_loss: float
    found: nx.DiGraph
    recovery: cc.GraphRecovery
    attention: torch.Tensor
    heads: list[cc.HeadScores]
    ablations: list[tuple[str, cc.AblationResult]]
    knock_out: cc.KnockOut
    information: cc.Information
    first_gradient: torch.Tensor
    examples: cc.Batch
    seed: int
    seconds: float = 0.0

    @property
    def parent_attention(self) -> list[float]:
        """Mean attention on each true edge: the largest over the heads of layer 0."""
        return [float(self.attention[0, :, child, parent].max()) for parent, child in self.context_edges]

    @property
    def context_edges(self) -> list[tuple[int, int]]:
        """True edges inside the context."""
        return sorted(cc.latent_edges(self.task.graph), key=lambda edge: edge[1])

    @property
    def effects(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Knock-out effects of true edges, and of all other causal entries outside the query's row."""
        effect = self.knock_out.effect.amax(dim=0)
        is_edge = cc.parent_mask(self.task)
        causal = torch.ones_like(is_edge).tril()
        causal[-1] = False
        return effect[is_edge & causal], effect[causal & ~is_edge]

    def auroc(self, children_only: bool = False) -> float:
        """How well knock-out effects tell true edges from other entries."""
        return cc.edge_auroc(self.knock_out.effect.amax(dim=0), self.task.graph, children_only=children_only)


def run(task: cc.InContextTask, seed: int, steps: int, quiet: bool) -> Findings:
    """Train, recover, detect, prove."""
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    config = cc.TrainConfig(stages=cc.default_stages(steps), seed=seed)
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads=(1, 1))

    say(f"{task!r}\n1/5  the gradient before training, and the information it should equal")
    information = cc.predicted_gradient(task, seed=seed)
    untrained = cc.warm_start(cc.reduced_transformer(task.d_vocab, task.n_ctx), BETA_0)
    before = cc.take_snapshot(untrained, task.sample(N_GRADIENT, seed=(seed, 1)))

    say(f"2/5  training, {config.steps} steps of {config.batch_size} sequences (a first run also compiles, ~10 s)")
    record = cc.train(model, task, config, progress=False if quiet else None)

    say("3/5  test loss and the lines to read it against")
    test = task.sample(N_TEST, seed=(seed, 2))
    test_loss = float(cc.evaluate(model, test).mean())
    references = cc.reference_losses(task, test, seed=seed)

    say("4/5  the graph in layer 1's attention, and what each head does")
    found = cc.extract_graph(model, task, seed=seed + 1)
    heads = cc.detect_induction_heads(model, task, seed=seed + 1)

    say("5/5  the proof: ablate every head, cut every attention entry")
    proof = task.sample(N_PROOF, seed=(seed, 3))
    ablations = [
        (f"L{layer}H{head}", cc.ablate_heads(model, proof, [(layer, head)], method, seed=seed))
        for layer, head in cc.live_heads(model)
        for method in cc.ABLATION_METHODS
    ]
    return Findings(
        task=task,
        config=config,
        model=model,
        record=record,
        references=references,
        test_loss=test_loss,
        found=found,
        recovery=cc.compare_graphs(task.graph, found),
        attention=cc.mean_attention(model, test.tokens[:4096]),
        heads=heads,
        ablations=ablations,
        knock_out=cc.knock_out_edges(model, proof),
        information=information,
        first_gradient=before.score_gradients[0, 0],
        examples=test[:3],
        seed=seed,
    )


def results(findings: Findings, arguments: argparse.Namespace, command: str) -> dict[str, object]:
    """Every number of the table, as JSON values."""
    f, (on_edges, elsewhere) = findings, findings.effects
    flags = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    return {
        "command": command,
        "config": {**flags, "n_ctx": f.task.n_ctx, "training": f.record.config},
        "versions": versions(),
        "loss": {"test": f.test_loss, "excess_over_edge_posterior": f.test_loss - f.references.edge_posterior}
        | asdict(f.references),
        "graph": {
            "parents": cc.graph_parents(f.task.graph),
            "found_parents": cc.graph_parents(f.found),
            "edges": len(f.context_edges),
            "recovered": len(f.context_edges) - len(f.recovery.missing),
            "exact": f.recovery.exact,
            "false_edges": len(f.recovery.false),
            "mean_parent_attention": sum(f.parent_attention) / len(f.parent_attention),
            "min_parent_attention": min(f.parent_attention),
            "candidates": [asdict(candidate) for candidate in f.found.graph["candidates"]],
        },
        "heads": [asdict(head) for head in f.heads],
        "ablation": [
            {
                "what": what,
                "method": result.method,
                "loss": result.loss,
                "standard_error": result.standard_error,
                "share_of_gain_lost": share_of_gain(f, result),
            }
            for what, result in f.ablations
        ],
        "knock_out": {
            "auroc": f.auroc(),
            "auroc_rows_of_children": f.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": {
            "wall_s": f.seconds,
            "train_s": f.record.seconds,
            "steps": f.config.steps,
            "train_sequences_per_s": f.record.sequences_per_s,
            "path": f.record.path,
        },
    }


def share_of_gain(findings: Findings, result: cc.AblationResult) -> float:
    """Loss increase over gain, gain = best unigram minus the model's test loss."""
    gain = findings.references.best_unigram - findings.test_loss
    return (result.loss - result.baseline_loss) / gain


def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    found = {"python": platform.python_version(), "causal_circuits": cc.__version__}
    for package in ("torch", "transformer-lens", "numpy", "networkx", "numba", "circuitsvis", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(findings: Findings, out: Path) -> str:
    """The short table that ends a run."""
    f, (on_edges, elsewhere) = findings, findings.effects
    lines = [
        f"graph       {len(f.context_edges) - len(f.recovery.missing)} of {len(f.context_edges)} parents found, "
        f"{len(f.recovery.false)} false edges; attention to the parent {mean(f.parent_attention):.3f} on average, "
        f"{min(f.parent_attention):.3f} at least",
        f"loss        {f.test_loss:.4f} = edge posterior {f.references.edge_posterior:.4f} "
        f"{f.test_loss - f.references.edge_posterior:+.4f} nats (best unigram {f.references.best_unigram:.4f})",
    ]
    for head in f.heads:
        shares = [share_of_gain(f, result) for what, result in f.ablations if what == f"L{head.layer}H{head.head}"]
        lines.append(
            f"head L{head.layer}H{head.head}   {head.role}: parent {head.parent_score:.2f}, induction "
            f"{head.induction_score:.2f}; ablated, {min(shares):.0%} or more of the gain is lost"
        )
    lines += [
        f"knock-out   AUROC {f.auroc():.3f} ({f.auroc(children_only=True):.3f} in rows of children); "
        f"a true edge costs {float(on_edges.mean()):.4f} nats, another entry {float(elsewhere.mean()):.4f}",
        f"time        {f.seconds:.1f} s, of which training {f.record.seconds:.1f} s "
        f"({f.record.sequences_per_s:,.0f} sequences/s, {f.record.path} path)",
        f"look at     {out / 'report.html'}",
    ]
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def write(findings: Findings, arguments: argparse.Namespace, command: str) -> None:
    """Model, record, figures, report and, last, results.json."""
    from report_page import draw_figures, write_page  # the page is long enough for a file of its own

    out: Path = arguments.out
    cc.save_model(findings.model, out / "model")
    findings.record.save(out / "record")
    for name, figure in draw_figures(findings).items():
        figures.save_figure(figure, out / "figures" / name)
    findings.seconds = time.perf_counter() - BEGAN
    content = results(findings, arguments, command)
    write_page(findings, content, command, out / "report.html")
    partial = out / "results.json.part"
    partial.write_text(json.dumps(json_values(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, out / "results.json")


def json_values(value: object) -> object:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
