"""The job of `multi_head.py`: train in turns, read every head, explain what is missing, prove, fail with one head.

Not a script. `find` is the job, in order; `MultiHeadFindings` is what it found.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import networkx as nx
import torch
from command_line import BEGAN, OneLineParser
from going_on import Units
from results_file import begin, say

import causal_circuits as cc


@dataclass(frozen=True)
class MissingEdge:
    """A true edge that no head carries, and the reason.

    Attributes:
        parent, child: of the edge.
        lift: its information given the other parents of the child, and the standard error of that.
        attention: the largest that a head pays it.
        loss_if_carried: how much the loss changes when the row is made to carry its true parents, and the standard
            error of that; NaN if not tried.
        explained: whether it tells nothing, or is of no use to the model as it is.
        reason: in words.
    """

    parent: int
    child: int
    lift: float
    lift_error: float
    attention: float
    loss_if_carried: float
    loss_error: float
    explained: bool
    reason: str


@dataclass(frozen=True)
class Repeat:
    """k heads and one head, trained from one seed for as many steps.

    Attributes:
        seed: of both trainings and of the test sequences.
        excess, single_excess: test losses of k heads and of one over the edge posterior, nats.
    """

    seed: int
    excess: float
    single_excess: float


@dataclass
class MultiHeadFindings:
    """Everything that one run found out."""

    task: cc.InContextTask
    n_heads: tuple[int, int]
    config: cc.TurnConfig
    model: object
    record: cc.TrainingRecord
    turns: tuple[cc.Turn, ...]
    references: cc.ReferenceLosses
    partial: dict[tuple[int, ...], float]
    test_loss: float
    found: cc.ExtractedGraph
    attention: torch.Tensor
    missing: list[MissingEdge]
    knock_out: cc.KnockOut
    ablations: list[cc.AblationResult]
    alone: cc.ConditionalInformation
    given: list[cc.ConditionalInformation]
    single_loss: float
    single: cc.ExtractedGraph
    single_turn: cc.Turn
    repeats: list[Repeat]
    seed: int
    seconds: float = 0.0

    @property
    def edges(self) -> list[tuple[int, int]]:
        """All true edges, the target's included."""
        return sorted(self.task.graph.edges)

    @property
    def recovered(self) -> list[tuple[int, int]]:
        """True edges that some head carries."""
        return [edge for edge in self.edges if self.found.has_edge(*edge)]

    @property
    def false(self) -> list[tuple[int, int]]:
        """Found edges that are not in the graph."""
        return sorted(set(self.found.edges) - set(self.task.graph.edges))

    @property
    def excess(self) -> float:
        """Test loss over the edge posterior, nats."""
        return self.test_loss - self.references.edge_posterior


def run_from_arguments(
    parser: OneLineParser,
    arguments: argparse.Namespace,
    make_graph: Callable[[argparse.Namespace], nx.DiGraph],
    heads_of: Callable[[str | None, int], tuple[int, int]],
) -> int:
    """Check the arguments, run the job, print the table; bad input ends in one line and status 2."""
    try:
        if arguments.seed < 0:
            raise ValueError(f"--seed must be 0 or more: got {arguments.seed}")
        if arguments.seeds < 1:
            raise ValueError(f"--seeds must be at least 1: got {arguments.seeds}")
        graph = make_graph(arguments)
        task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        if task.has_query:
            raise ValueError("this graph gives every position one parent at most, and a query: see causal_graph.py")
        n_heads = heads_of(arguments.heads, len(task.target_parents))
        steps = max(arguments.steps // 10, 1) if arguments.quick else arguments.steps
        if steps < 2 * n_heads[0]:
            raise ValueError(f"--steps must be at least 2 for each of {n_heads[0]} heads: got {steps}")
        settle = max(1, min(60, steps // (4 * n_heads[0])))
        config = cc.TurnConfig(steps=steps, settle=settle, seed=arguments.seed)
        begin(arguments)
        units = Units.of(parser.prog, arguments, parents=sorted(graph.edges))
    except ValueError as error:
        parser.error(str(error))
    findings = find(task, n_heads, config, arguments.seeds, arguments.quick, arguments.quiet, units)
    from multi_head_page import table, write

    write(findings, arguments, units)
    print(table(findings, arguments.out))
    return 0


def find(
    task: cc.InContextTask,
    n_heads: tuple[int, int],
    config: cc.TurnConfig,
    n_seeds: int,
    quick: bool,
    quiet: bool,
    units: Units,
) -> MultiHeadFindings:
    """Train, read, explain, prove; and once more with a single head. All trainings go on if they were cut short."""
    tell = say(quiet)
    n_test, n_proof, n_data = (4096, 256, 8192) if quick else (16_384, 1024, 8192)
    progress = False if quiet else None
    seed = config.seed

    tell(f"{task!r}\n1/5  {n_heads[0]} heads take turns, {config.steps} steps")
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads)
    kept = cc.Checkpoints(units.training("heads"))
    record, turns = cc.train_in_turns(model, task, config, progress=progress, checkpoints=kept)

    tell("2/5  test loss and the lines to read it against")
    test = task.sample(n_test, seed=(seed, 2))
    test_loss = float(cc.evaluate(model, test).mean())

    tell("3/5  which head carries which parent, and what information there is")
    data = task.sample(n_data, seed=(seed, 4))
    found = cc.extract_graph(model, task, batch=data)
    attention = cc.mean_attention(model, test.tokens[:4096])
    alone, given = information_of_true_parents(task, data)

    tell("4/5  the proof: cut every attention entry of every head, ablate every head")
    proof = task.sample(n_proof, seed=(seed, 3))
    knock_out = cc.knock_out_edges(
        model, proof, entries=entries_in_use(cc.mean_attention(model, proof.tokens)[0], n_heads[0])
    )
    ablations = [cc.ablate_heads(model, proof, [head], "mean") for head in cc.live_heads(model)]
    missing = explain_missing(task, model, found, attention[0, : n_heads[0]], alone, given, test[:4096])

    tell("5/5  the same task with a single head")
    one, unrecorded = (1, n_heads[1]), cc.RecordAt(steps=())

    def trained(heads: tuple[int, int], seed: int, name: str) -> tuple[object, tuple[cc.Turn, ...]]:
        fresh = cc.disentangled_transformer(task.d_vocab, task.n_ctx, heads)
        kept, own = cc.Checkpoints(units.training(name)), replace(config, seed=seed)
        with few_heads_are_wanted():
            return fresh, cc.train_in_turns(fresh, task, own, record=unrecorded, progress=progress, checkpoints=kept)[1]

    lone, lone_turns = trained(one, seed, "one_head")
    references = cc.reference_losses(task, test, seed=seed)
    single_loss = float(cc.evaluate(lone, test).mean())
    posterior = references.edge_posterior
    repeats = [Repeat(seed, test_loss - posterior, single_loss - posterior)]
    for other in range(seed + 1, seed + n_seeds):
        tell(f"     and from seed {other}")
        own = task.sample(n_test, seed=(other, 2))
        models = [trained(heads, other, f"heads_{other}_{heads[0]}")[0] for heads in (n_heads, one)]
        posterior = task.bayes_loss(own)
        repeats.append(Repeat(other, *(float(cc.evaluate(some, own).mean()) - posterior for some in models)))
    return MultiHeadFindings(
        task=task,
        n_heads=n_heads,
        config=config,
        model=model,
        record=record,
        turns=turns,
        references=references,
        partial=cc.subset_losses(task, test),
        test_loss=test_loss,
        found=found,
        attention=attention,
        missing=missing,
        knock_out=knock_out,
        ablations=ablations,
        alone=alone,
        given=given,
        single_loss=single_loss,
        single=cc.extract_graph(lone, task, batch=data),
        single_turn=lone_turns[0],
        repeats=repeats,
        seed=seed,
        seconds=time.perf_counter() - BEGAN,
    )


@contextmanager
def few_heads_are_wanted() -> Iterator[None]:
    """Within, `train` does not warn that the model has fewer heads than a position has parents."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the graph cannot be learned whole")
        yield


def entries_in_use(attention: torch.Tensor, n_heads: int) -> list[tuple[int, int, int]]:
    """(head, query, key) of every entry with at least 1% of its row's attention: cutting less cannot cost much."""
    used = (attention[:n_heads] >= 0.01).nonzero().tolist()
    return [(head, query, key) for head, query, key in used]


def true_matches(task: cc.InContextTask, number: int) -> cc.Matches:
    """What a head would copy that carries the parents of one number everywhere."""
    k, last = len(task.target_parents), task.n_ctx - 1
    above = [cc.parents_of(task.graph, i) for i in range(last)]
    keys = [parents[number] if len(parents) == k else -1 for parents in above]
    return cc.Matches(task.target_parents[number], (*keys, -1))


def information_of_true_parents(
    task: cc.InContextTask, data: cc.Batch
) -> tuple[cc.ConditionalInformation, list[cc.ConditionalInformation]]:
    """The lift of every pair alone, and for each parent number given the true parents of all others."""
    data = data[:8192]
    alone = cc.conditional_information(data.tokens, data.target_probs)
    numbers = range(len(task.target_parents))
    given = [
        cc.conditional_information(
            data.tokens, data.target_probs, [true_matches(task, other) for other in numbers if other != number]
        )
        for number in numbers
    ]
    return alone, given


def explain_missing(
    task: cc.InContextTask,
    model: object,
    found: cc.ExtractedGraph,
    attention: torch.Tensor,
    alone: cc.ConditionalInformation,
    given: Sequence[cc.ConditionalInformation],
    batch: cc.Batch,
) -> list[MissingEdge]:
    """Why each edge that was not found is missing."""
    k, target = len(task.target_parents), task.n_ctx
    explained = []
    for parent, child in sorted(task.graph.edges):
        if found.has_edge(parent, child):
            continue
        above, row = cc.parents_of(task.graph, child), min(child, target - 1)
        number = above.index(parent)
        t = task.target_parents[min(number, k - 1)]
        information, weight = (given[number] if len(above) == k else alone), float(attention[:, row, parent].max())
        lift, error = (float("nan"), float("nan")) if child == target else told(information, child, parent, t)
        change, change_error = float("nan"), float("nan")
        if child == target:
            why, reason = False, f"no row goes with position {parent}: see the rows of that parent number"
        elif len(above) != k:
            why = True
            reason = (
                f"its child has {len(above)} parents, the target {k}: their kernels are independent, and the lift that "
                f"it has ({lift:.2f} +- {error:.2f}) is inherited"
            )
        elif parent == t:
            why, reason = True, "it is the target's parent too: its match always holds and tells nothing"
        elif lift < NOISE * error:
            why, reason = True, f"it tells nothing: lift {lift:.3f} +- {error:.3f}"
        elif child == target - 1:
            why, reason = True, "its child is the last position, whose row has the target's parents to copy"
        else:
            change, change_error = loss_if_carried(task, model, found, child, batch)
            why = change > -NOISE * change_error
            use = "is of no use to the model as it is" if why else "was not learned"
            reason = (
                f"attention {weight:.2f}; the row {use}: carrying its parents changes the loss by {change:+.5f} +- "
                f"{change_error:.5f} nats"
            )
        explained.append(MissingEdge(parent, child, lift, error, weight, change, change_error, why, reason))
    return explained


NOISE = 2.0  # standard errors


def told(information: cc.ConditionalInformation, child: int, parent: int, t: int) -> tuple[float, float]:
    """A lift and its standard error."""
    return float(information.value[child, parent, t]), float(information.standard_error[child, parent, t])


@torch.no_grad()
def loss_if_carried(
    task: cc.InContextTask, model: object, found: cc.ExtractedGraph, child: int, batch: cc.Batch
) -> tuple[float, float]:
    """How much the loss changes when a row attends to its true parents, each by the head that has its t; its error."""
    above = dict(zip(task.target_parents, cc.parents_of(task.graph, child), strict=True))
    heads = {head.head: above[head.last_key] for head in found.heads if head.last_key in above}

    def carry(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        pattern = pattern.clone()
        for head, parent in heads.items():
            pattern[:, head, child] = 0.0
            pattern[:, head, child, parent] = 1.0
        return pattern

    before = cc.evaluate(model, batch)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", carry)]):
        after = cc.evaluate(model, batch)
    change = after - before
    return float(change.mean()), float(change.std()) / len(change) ** 0.5
