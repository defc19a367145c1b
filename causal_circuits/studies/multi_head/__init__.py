"""Several heads that share a graph with several parents a position."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.multi_head.measure import measure_heads, measure_training
from causal_circuits.studies.parents_file import graph_of_file
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import edge_table, timing_of, two_parents_graph

MARGIN = 0.05  # nats
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """With k parents a position, k heads of layer 0 share the graph between them; one, trained as long, stops above.

    Trains a multi-head disentangled HookedTransformer on sequences in which every token depends on several earlier
    ones, started where the gradient of order k points (`cc.TrainConfig.matched`). Reads the union graph out of all
    heads, names what is missing and why - not learned, not needed, a decoy -, says how much of the loss the graph is
    worth at all, and cuts every attention entry of every head. A single head is trained on the same task for as many
    steps (by the recipe for one parent from small random weights: it has no full match to start from), from several
    seeds; only a difference of more than .05 nats in each of them counts. Layer 1 has two heads, from which the
    read-out can tell how many keys match (docs/SEVERAL_PARENTS.md).

        python analyses/multi_head.py                        # the paper's graph: parents (i - 1) // 2 and i - 1
        python analyses/multi_head.py --ngram 4 --d-vocab 3  # 4-grams: three parents, three heads
        python analyses/multi_head.py --parents my_dag.json  # [[], [], [0, 1], ..., [3, 7]]

    A parents file is a JSON list of lists over all context positions and, last, the target: n_ctx + 1 entries, [] for
    a root.
    """

    QUICK: ClassVar = {"quick": True, "seeds": 1}  # and n_ctx 16, a tenth of the steps, smaller samples

    d_vocab: int = 5  #: number of tokens
    n_ctx: int | None = None  #: context length; None: 32 (quick: 16), or what the parents file says
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 9000  #: training steps of 1,024 fresh sequences
    ngram: int | None = None  #: K-grams: K - 1 parents, the positions just before
    parents: Path | None = None  #: a JSON list of lists of parents
    heads: str | None = None  #: heads of the two layers, such as 2,1, the paper's; None: one a parent, and 2
    seeds: int = 3  #: how many seeds compare k heads with one

    def check(self) -> None:
        at_least(1, seeds=self.seeds)
        if self.task.has_query:
            raise ValueError("this graph gives every position one parent at most, and a query: see causal_graph.py")
        at_least(2, steps=self.trained_steps)
        _ = self.n_heads

    @property
    def graph(self) -> nx.DiGraph:
        if self.ngram is not None and self.parents is not None:
            raise ValueError("--ngram and --parents both name a graph: give one of them")
        if self.parents is not None:
            return graph_of_file(self.parents, self.n_ctx, several=True)
        n_ctx = (16 if self.quick else 32) if self.n_ctx is None else self.n_ctx
        if self.ngram is not None:
            at_least(2, ngram=self.ngram)
            return cc.ngram_graph(n_ctx, self.ngram - 1)
        at_least(3, n_ctx=n_ctx)
        return two_parents_graph(n_ctx)

    @property
    def task(self) -> cc.InContextTask:
        return cc.InContextTask(self.graph, d_vocab=self.d_vocab, alpha=self.alpha)

    @property
    def n_heads(self) -> tuple[int, int]:
        """The heads of both layers: as many in layer 0 as the target has parents, unless a flag says otherwise."""
        if self.heads is None:
            return len(self.task.target_parents), 2
        try:
            first, second = (int(part) for part in self.heads.split(","))
        except ValueError as error:
            raise ValueError(f"--heads must be two integers such as 2,1: got {self.heads!r}") from error
        if first < 1 or second < 1:
            raise ValueError(f"--heads needs at least one head in each layer: got {self.heads!r}")
        return first, second

    @property
    def trained_steps(self) -> int:
        return max(self.steps // 10, 1) if self.quick else self.steps

    def cells(self) -> list[Cell]:
        """The training that is read and proved; the same with one head; both from further seeds."""
        same = self.flags("d_vocab", "alpha", "quick") | {"steps": self.trained_steps}
        same |= {"parents": cc.graphs.graph_parents(self.graph)}
        found, one = [], (1, self.n_heads[1])
        for seed in range(self.seed, self.seed + self.seeds):
            first = seed == self.seed
            whole = measure_heads if first else measure_training
            for name, n_heads, measure in (("all heads", self.n_heads, whole), ("one head", one, measure_training)):
                settings = {**same, "n_heads": n_heads, "seed": seed, "read": first and measure is measure_training}
                found.append(Cell(f"{name} seed {seed}", measure, settings, scratch=True, progress=True))
        return found

    def report(self, rows: Mapping[str, Any]) -> Report:
        repeats = []
        for seed in range(self.seed, self.seed + self.seeds):
            several, one = (rows[f"{name} seed {seed}"]["excess"] for name in ("all heads", "one head"))
            repeats.append({"seed": seed, "excess": several, "single_excess": one})
        task, heads, single = self.task, rows[f"all heads seed {self.seed}"], rows[f"one head seed {self.seed}"]
        return Report(
            title=f"Did these heads share the graph? ({task.graph.graph.get('name', 'DAG')})",
            checks=make_checks(task, heads, repeats),
            results=make_results(task, heads, single, repeats),
            sections=make_sections(task, heads, single),
            about={"task": repr(task)},
            saved={"model": partial(cc.save_model, heads["model"]), "record": heads["record"].save},
        )


def make_results(task: cc.InContextTask, heads: Row, single: Row, repeats: Sequence[Row]) -> Row:
    found, record = heads["found"], heads["record"]
    return {
        "config": {
            "n_ctx": task.n_ctx,
            "n_heads": cc.models.layout_of(heads["model"]).n_heads,
            "training": record.config,
        },
        "loss": {
            "test": heads["loss"],
            "excess_over_edge_posterior": heads["excess"],
            **asdict(heads["references"]),
            "without_graph": heads["without_graph"],
            "parents_known": {name_of(which): loss for which, loss in heads["parents_known"].items()},
        },
        "graph": {
            "parents": parents_lists(task.graph),
            "found_parents": parents_lists(found),
            "inferred": [list(edge) for edge in found.inferred],
            **heads["edges"],
            "head_of_edge": {f"{p}->{c}": found.carriers(p, c) for p, c in sorted(found.edges)},
            "missing": heads["missing"],
            "candidates": found.candidates,
        },
        **heads_of(found),
        "information": heads["information"],
        "knock_out": heads["knock_out"],
        "ablation": [
            {"head": name, "loss": r.loss, "baseline": r.baseline_loss, "standard_error": r.standard_error}
            for name, r in heads["ablated"].items()
        ],
        "single_head": {
            "test_loss": single["loss"],
            "excess_over_edge_posterior": single["excess"],
            "repeats": repeats,
            **heads_of(single["found"]),
        },
        "timing": timing_of(record),
    }


def heads_of(found: cc.discovery.ExtractedGraph) -> dict[str, Any]:
    """What each head carries, and the target's parents that none does."""
    further = [parent for parent, child in found.inferred if child == found.graph["target"]]
    return {"heads": found.heads, "further_parents": further}


def parents_lists(graph: nx.DiGraph) -> list[list[int]]:
    return [list(cc.graphs.parents_of(graph, node)) for node in sorted(graph.nodes)]


def name_of(which: tuple[int, ...]) -> str:
    """A set of parent numbers in words, counted from 1."""
    return "no parent" if not which else "parent " + " + ".join(str(number + 1) for number in which)


def about_single(single: Row) -> str:
    """What a single head carries, and the target's parents that it leaves."""
    left = heads_of(single["found"])["further_parents"]
    lacking = [f"no last row attends to the target's parents {left}, which the sequences show"] if left else []
    return "; ".join([*(head.role for head in single["found"].heads), *lacking, "one copy holds one token"])


def about_the_graph(heads: Row) -> str:
    """How much of the loss the graph is worth: whether a model that predicts well must have learned it."""
    without = heads["without_graph"]
    n = len(without["direct_draws"])
    return (
        f"without any edge {without['loss']:.4f}, so the graph is worth {without['graph_is_worth']:.4f} nats; {n} "
        f"position{'s are draws' if n != 1 else ' is a draw'} from the target's law itself"
    )


def make_checks(task: cc.InContextTask, heads: Row, repeats: Sequence[Row]) -> list[Check]:
    edges, found = heads["edges"], heads["found"]
    unexplained = sum(not row["explained"] for row in heads["missing"])
    on_duty = {f"L0H{head.head}": head.last_key for head in found.heads if head.edges}
    rises = {name: r.loss - r.baseline_loss for name, r in heads["ablated"].items() if name.startswith("L0")}
    return [
        Check(
            not edges["false_edges"] and not unexplained,
            "The union of what the heads carry is the true graph, but for edges that tell nothing or are of no use",
            f"{edges['recovered']} of {edges['edges']} edges ({edges['attended']} attended, {edges['inferred']} "
            f"inferred), {edges['false_edges']} false; attention alone: "
            f"{edges['attention_alone']['recovered']}, {edges['attention_alone']['false_edges']} false; not attended: "
            f"{kinds(heads['missing'])}",
        ),
        Check(
            heads["excess"] <= MARGIN,
            f"It predicts about as well as the posterior that knows the edges (within {MARGIN} nats)",
            f"test loss {heads['loss']:.4f}, edge posterior {heads['references'].edge_posterior:.4f}, "
            f"excess {heads['excess']:+.4f}",
        ),
        Check(
            set(on_duty.values()) == set(task.target_parents),
            "Heads are read without the graph, and agree with it: each parent of the target has a head of its own",
            "; ".join(f"L0H{head.head} {head.role}" for head in found.heads),
        ),
        Check(
            all(rise > MARGIN for name, rise in rises.items() if name in on_duty),
            f"Each of these heads is needed: without it (its output averaged) the loss rises by {MARGIN} nats or more",
            "; ".join(f"{name} {rise:+.4f}" for name, rise in rises.items()),
        ),
        Check(
            all(row["AUROC, own edges"] > 0.9 for row in heads["knock_out"] if row["edges"]),
            "Cutting attention entries one by one, in each head it is its own edges that hurt",
            "; ".join(
                f"{row['head']} {row['effect of its edges']:.4f} nats, another entry "
                f"{row['effect of other entries']:.4f} (AUROC {row['AUROC, own edges']:.3f})"
                if row["edges"]
                else f"{row['head']} carries no edge"
                for row in heads["knock_out"]
            ),
        ),
        Check(
            all(row["excess"] <= MARGIN < row["single_excess"] - row["excess"] for row in repeats),
            f"From each of {len(repeats)} seeds, {len(found.heads)} heads come within {MARGIN} nats of that "
            f"posterior, and a single head, trained for as many steps, stays more than {MARGIN} nats above them",
            "; ".join(f"seed {row['seed']}: {row['excess']:+.4f} and {row['single_excess']:+.4f}" for row in repeats),
        ),
    ]


def kinds(missing: Sequence[Row]) -> str:
    counts = Counter(row["kind"] for row in missing)
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"


def make_sections(task: cc.InContextTask, heads: Row, single: Row) -> list[Section]:
    edges, found, graph = heads["edges"], heads["found"], task.graph
    attentions = {f"L0H{head.head} {head.role}": heads["attention"][head.head] for head in found.heads}
    attentions |= {f"one head alone: {head.role}": single["attention"][head.head] for head in single["found"].heads}
    names = {head.head: f"L0H{head.head}" for head in found.heads}
    cut = heads["cut"].clone()
    cut[:, -1] = float("nan")  # the last row serves every prediction: it would drown the others' colours
    nats = partial(figures.plot_matrix, graph=graph, diverging=True)
    return [
        Section(
            "The heads side by side, and one head alone",
            "Attention of each head of layer 0, and of a single one trained for as many steps; open squares "
            "are the true edges, and the last row stands for the target. The single head ends "
            f"{single['excess']:+.4f} nats from the edge posterior: {about_single(single)}.",
            figures={"attention": figures.plot_attentions(attentions, graph)},
        ),
        Section(
            "The union graph",
            f"{edges['attended']} of {edges['edges']} edges are attended to and confirmed by the sequences, and drawn "
            f"beside the true graph; {edges['inferred']} more are inferred from the sequences alone.",
            figures={"graph": figures.plot_graph_comparison(graph, found)},
            table=edge_table(found, graph).query("accepted").drop(columns="accepted"),
        ),
        Section(
            "Missing edges",
            f"True edges that no head attends to: {len(heads['missing'])} ({kinds(heads['missing'])}). 'Not learned' "
            "if attending to its row's parents would lower the loss, 'not needed' if it would change nothing, 'decoy' "
            "if the row attends elsewhere and the loss would rise.",
            table=heads["missing"],
        ),
        Section(
            "The loss in training",
            "Each line is the best that can be predicted with so many parents known and the others not; without the "
            f"graph: {about_the_graph(heads)}.",
            figures={"loss": figures.plot_loss(heads["record"], loss_lines(task, heads), test_loss=heads["loss"])},
        ),
        Section(
            "What breaks when an entry is cut",
            "Cutting one attention entry of one head at a time, nats. Entries of less than 1% of their row's attention "
            "were not cut; the last row, which every prediction needs, is in the table only.",
            figures={
                f"knock_out_{name}": nats(
                    cut[head], title=f"Loss when one entry of {name} is cut", label="nats above the whole model"
                )
                for head, name in names.items()
            },
            table=heads["knock_out"],
        ),
    ]


def loss_lines(task: cc.InContextTask, heads: Row) -> dict[str, float]:
    """Horizontal lines beside the training loss: for every number of parents known, those that help most."""
    known, references = heads["parents_known"], heads["references"]
    sizes = range(len(task.target_parents))
    best = [min((which for which in known if len(which) == size), key=known.__getitem__) for size in sizes]
    lines = {name_of(which): known[which] for which in best}
    return {**lines, "edge posterior": references.edge_posterior, "entropy": references.entropy}
