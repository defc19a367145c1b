"""The circuit of one model: written down edge by edge, then proved, refuted, or left undecided."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import pandas as pd
import torch
from matplotlib.axes import Axes

import causal_circuits as cc
from causal_circuits import circuits, figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies import causal_graph
from causal_circuits.studies.circuit_proof.measure import (
    KEEPS,
    Evidence,
    measure_model,
    train_and_measure,
    train_several_heads,
)
from causal_circuits.studies.parents_file import graph_of_file
from causal_circuits.studies.study import Cell, Report, at_least
from causal_circuits.studies.tables import two_parents_graph

Formations = Sequence[circuits.CircuitFormation]
CRITERIA = {
    "faithful": "The circuit's mean loss is that of the whole model",
    "complete": "Under random knock-outs circuit and whole model lose alike",
    "minimal": "Every edge of the circuit is needed",
    "sufficient": "The circuit is better than others of its size",
}


@dataclass(frozen=True, kw_only=True)
class Config(causal_graph.Config):
    """The circuit of a model can be written down edge by edge, and proved, refuted, or left undecided.

    Takes one two-layer model - trained here, or loaded from a folder that another analysis wrote - and asks in this
    order: do the tools obey their own laws on it; which circuit is the best of its size, out of all there are; is that
    circuit faithful, complete, minimal and sufficient (better than others of its size) on fresh sequences; which
    discovery method would have found it, all asked by the same loss and the same counterfactual; does causal scrubbing
    leave the paper's hypothesis standing; and do the attention entries that matter equal the latent graph. If the model
    is trained here, also, over several seeds: when did each edge begin to matter, against when attention shows it and
    how hard the gradient pulled at it.

        python analyses/circuit_proof.py                                     # a forest, about two minutes on two cores
        python analyses/circuit_proof.py --graph chain --d-vocab 10
        python analyses/circuit_proof.py --model out/induction_head/model --graph chain --d-vocab 10
        python analyses/circuit_proof.py --decoy                             # Adam from zero: often no graph
        python analyses/circuit_proof.py --graph 3-gram --n-ctx 12           # two parents, two heads in layer 0

    With k parents a position (two-parents, k-grams, a file of lists) k heads of layer 0 are trained by the recipe that
    `train` has for them; circuits are searched among the edges that cost most when cut, and forming is not watched.
    """

    QUICK: ClassVar = {"n_ctx": 10, "steps": 600, "sequences": 256, "formation_seeds": 1}

    graph: str = "forest"
    """chain, pairs or forest; two-parents (the paper's: (i - 1) // 2 and i - 1), 3-gram or 4-gram"""
    parents: Path | None = None  #: a JSON list of parents, or of lists of them, the target's last; in place of --graph
    steps: int = 2000  #: training steps of 1,024 fresh sequences, with one parent a position
    warm_start: bool = True  #: write in layer 1's match and the read-out first: only layer 0 is learned
    model: Path | None = None  #: prove the circuit of the model saved in this folder; train nothing
    decoy: bool = False  #: train by Adam at 0.1 from zero: often no graph
    sequences: int = 1024  #: to prove on; an eighth of them to search on
    formation_seeds: int = 5  #: trainings in which edges are seen to form

    def check(self) -> None:
        at_least(64, sequences=self.sequences)
        at_least(1, formation_seeds=self.formation_seeds)
        if self.model is not None and self.decoy:
            raise ValueError("--decoy trains a model and --model loads one: choose one of them")
        super().check()
        if not self.task.has_query and (self.decoy or not self.warm_start):
            raise ValueError(
                "--decoy and --no-warm-start are recipes for one parent a position: save a model of plant_decoy or of "
                "your own training, and name it with --model"
            )
        if self.model is not None:
            model, k = cc.load_model(self.model), len(self.task.target_parents)
            cc.models.check_model(model, self.task.d_vocab, self.task.n_ctx)
            found = cc.models.layout_of(model).n_heads
            if found[0] < k:
                raise ValueError(
                    f"--model must have a head of layer 0 for each of the target's {k} parents: this has {found[0]}"
                )

    def make_graph(self) -> nx.DiGraph:
        n_ctx = 20 if self.n_ctx is None else self.n_ctx
        if self.parents is not None:
            return graph_of_file(self.parents, self.n_ctx, several=None)
        if self.graph == "two-parents":
            at_least(3, n_ctx=n_ctx)
            return two_parents_graph(n_ctx)
        if self.graph in ("3-gram", "4-gram"):
            return cc.ngram_graph(n_ctx, int(self.graph[0]) - 1)
        return super().make_graph()

    def cells(self) -> list[Cell]:
        """The saved model; or a training for each seed, the first of them searched and proved."""
        task = {"parents": cc.graphs.graph_parents(self.task.graph), "d_vocab": self.d_vocab, "alpha": self.alpha}
        same = {"task": task, "n_sequences": self.sequences, "seed": self.seed}
        if self.model is not None:
            weights = cc.storage.digest(dict(cc.load_model(self.model).named_parameters()))
            return [Cell("saved model", measure_model, {**same, "folder": str(self.model), "weights": weights})]
        if not self.task.has_query:
            return [Cell("training", train_several_heads, same)]
        recipe = "adam" if self.decoy else "warm" if self.warm_start else "zero"
        same |= {"recipe": recipe, "steps": self.steps}
        return [
            Cell(f"training {seed}", train_and_measure, {**same, "own_seed": seed, "prove": seed == self.seed})
            for seed in range(self.seed, self.seed + self.formation_seeds)
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        e: Evidence = next(iter(rows.values()))["evidence"]
        formations = [row["formation"] for row in rows.values() if row["formation"] is not None]
        whole, task = e.whole, self.task
        found: Any = {"circuit": whole.mask(e.proof.circuit), "discoveries": e.discoveries, "proof": e.proof}
        formed = [("formation", say_onsets(formations))] if formations else []
        return Report(
            title=f"Which circuit is this, and is it one? ({task.graph.graph.get('name', 'graph')})",
            checks=make_checks(e),
            results=make_results(task, e, formations),
            sections=[*make_sections(task, e, whole), *([show_formation(formations)] if formations else [])],
            summary=[("circuit", e.proof.verdict), *formed],
            about={"task": repr(task)},
            saved={
                "circuit.json": partial(circuits.export_circuit, model=whole, **found),
                **({"model": partial(cc.save_model, e.model)} if self.model is None else {}),
            },
        )


def make_checks(e: Evidence) -> list[Check]:
    scores = e.entries[0][1]
    kept = {(s.claim, s.where): s.recovered for s in e.scrubbed}
    return [
        Check(
            all(check.passed for check in e.checks),
            "The tools obey their own laws on this model",
            "; ".join(f"{check.law}: off by {check.error:.1e}" for check in e.checks),
        ),
        *(
            Check((c.passed or "refuted") if c.testable else "undecided", CRITERIA[c.name], c.reason)
            for c in e.proof.criteria
        ),
        Check(
            e.encodes_graph or "refuted",
            "In nine rows with parents of ten the parents are the entries that matter most",
            f"cut one by one, the parents are the entries that cost most in {scores.exact_parent_rate:.0%} of the rows "
            f"with parents; AUROC {scores.auroc:.3f}",
        ),
        Check(
            kept["both", "children"] >= 0.9 or "refuted",
            "Causal scrubbing leaves the paper's hypothesis standing: where a position has parents, head 0.h copies "
            "parent h and head 1.0 matches it with the query",
            f"it keeps {kept['both', 'children']:.3f} of the loss that free resampling there destroys (0.9 passes; "
            f"copying alone {kept['copy', 'children']:.3f}, matching alone {kept['match', 'children']:.3f}); a model "
            "that used nothing else would also keep it with all the rest resampled: this one keeps "
            f"{kept['both', 'everywhere']:.3f}",
        ),
    ]


def make_results(task: cc.InContextTask, e: Evidence, formations: Formations) -> dict[str, Any]:
    return {
        "config": {"n_ctx": task.n_ctx, "parents": cc.graphs.graph_parents(task.graph)},
        "loss": {"whole": e.proof.full_cost, "edge_posterior": e.edge_posterior, "circuit": e.proof.cost},
        "self_checks": e.checks,
        "proof": {**cc.storage.plain_values(e.proof), "proved": e.proof.proved, "verdict": e.proof.verdict},
        "frontier": e.frontier,
        "methods": method_rows(e),
        "encodes_graph": e.encodes_graph,
        "scrubbing": [{**cc.storage.plain_values(s), "recovered": s.recovered} for s in e.scrubbed],
        "formation": formation_results(formations) if formations else None,
        "timing": {"frontier_s": e.frontier.seconds, "circuits": e.frontier.n_circuits},
    }


def formation_results(formations: Formations) -> dict[str, Any]:
    first = formations[0]
    of_seed = ("attention_onset", "causal_onset", "circuit_onset", "order_by_pull", "loss", "attention", "share")
    return {
        **{name: getattr(first, name) for name in ("steps", "cells", "information", "pull")},
        "onset": onset_intervals(formations),
        "circuit_onset": {
            " -> ".join(edge): circuits.onset_interval([f.circuit_onset[k : k + 1] for f in formations])
            for k, edge in enumerate(first.circuit_edges)
        },
        "seeds": [
            {name: getattr(f, name) for name in (*of_seed, "effect")} | {"auroc": [scores.auroc for scores in f.scores]}
            for f in formations
        ],
    }


def onset_intervals(formations: Formations) -> dict[str, circuits.OnsetInterval]:
    """The median onset of edges by each clock, and how much later they matter than they show, over seeds."""
    clocks = {
        "attention": [f.attention_onset for f in formations],
        "causal": [f.causal_onset for f in formations],
        "causal_minus_attention": [f.causal_onset - f.attention_onset for f in formations],
    }
    return {name: circuits.onset_interval(onsets) for name, onsets in clocks.items()}


def say_onsets(formations: Formations) -> str:
    """Onsets, and what the pull at the start says of their order."""
    found = onset_intervals(formations)
    shown = ", ".join(
        f"{name.replace('_', ' ')} {at.mean:.0f} [{at.low:.0f}, {at.high:.0f}]" for name, at in found.items()
    )
    orders = [f.order_by_pull for f in formations if f.order_by_pull == f.order_by_pull]
    order = f"{min(orders):.2f} to {max(orders):.2f} over these runs" if orders else "not defined here"
    return (
        f"median onset in steps (95% over seeds): {shown}; {found['causal'].never:.0%} of edges never matter; "
        "Spearman's rank correlation of the information's pull, through the softmax of a row, with earliness is "
        f"{order}"
    )


def method_rows(e: Evidence) -> list[dict[str, Any]]:
    return [
        {
            "method": ranking.method,
            "mean_regret": ranking.mean_regret,
            "cpr": ranking.cpr,
            "cmd": ranking.cmd,
            "score": found.score,
            "entries": scores,
        }
        for found, ranking, (_, scores) in zip(e.discoveries, e.rankings, e.entries, strict=True)
    ]


def make_sections(task: cc.InContextTask, e: Evidence, whole: circuits.CircuitModel) -> list[Section]:
    effects = {edge.edge: edge.effect for edge in e.proof.edges}
    scrubbed = pd.DataFrame(e.scrubbed)[["claim", "where", "loss", "baseline_loss", "random_loss"]]
    return [
        Section(
            "The circuit",
            f"The smallest circuit that keeps {KEEPS:.0%} of what the best of {e.frontier.n_circuits:,} circuits "
            f"gains: {len(e.proof.circuit)} of {len(whole)} edges. The number on an edge is what the circuit loses "
            "without it, nats, on sequences that the search has not seen; the table has its error, and whether it "
            "passes Holm's correction.",
            figures={"circuit": figures.plot_circuit(whole.graph, whole.mask(e.proof.circuit), effects=effects)},
            table=[{**asdict(edge), "edge": " -> ".join(edge.edge)} for edge in e.proof.edges],
        ),
        Section(
            "The best circuits, and what the methods find",
            "The thick line is the least cost of any circuit with so many edges; the other lines take a method's "
            "highest-scoring edges, so the gap is its regret. All methods are asked by the loss; an edge that is cut "
            "reads its mean, an entry that is cut is set to zero, and gradients compare with the same. cpr is the area "
            "under a method's share of the gain against the share of edges, cmd the area between that share and 1.",
            figures={"frontier": figures.plot_frontier(e.frontier, e.rankings)},
            table=[
                {key: row[key] for key in ("method", "mean_regret", "cpr", "cmd")} | asdict(row["entries"])
                for row in method_rows(e)
            ],
        ),
        Section(
            "The entries that matter, and the graph",
            "Layer 0's attention, and what cutting each entry costs, but for the last row, which every prediction "
            "needs; true edges are outlined. A model that predicts by other means has a low loss and no match here.",
            figures={
                "attention": figures.plot_attention_and_graph(e.knock_out.attention.amax(dim=0), task.graph),
                "knock_out": figures.plot_knock_out(e.knock_out, task.graph),
            },
        ),
        Section(
            "Causal scrubbing",
            "Everything that the paper's hypothesis calls irrelevant is resampled; what remains of the loss is the "
            "hypothesis's share. 'children' holds it to positions with parents, of which the paper speaks. "
            "'everywhere' also resamples roots, the query's row and the path past layer 0: what is lost only there is "
            "what the model uses besides the circuit (a root's token, too, tells about the transition matrix).",
            table=scrubbed.assign(share_kept=[s.recovered for s in e.scrubbed]),
        ),
    ]


def show_formation(formations: Formations) -> Section:
    return Section(
        "When each edge began to matter",
        "Attention on each edge; its share of the effects of all entries of its row, each cut alone; and that effect "
        f"itself, at {len(formations[0].steps)} steps. Dotted lines mark onsets: the first step from which an edge "
        f"stays half-way from its first to its last value. Below, onsets of {len(formations)} trainings on other "
        f"data: {say_onsets(formations)}.",
        figures={"formation": figures.plot_formation(formations[0]), "onsets": plot_onsets(formations)},
    )


def plot_onsets(formations: Formations) -> Axes:
    clocks = {
        "attention shows the edge": [f.attention_onset for f in formations],
        "cutting it moves the prediction": [f.causal_onset for f in formations],
    }
    means = {name: torch.stack(list(onsets)).mean(dim=0).tolist() for name, onsets in clocks.items()}
    pull = formations[0].pull.tolist()
    points = {name: [p for p in zip(pull, of, strict=True) if isfinite(p[1])] for name, of in means.items()}
    xlabel = "gradient of the edge's score that its information predicts at the start"
    return figures.plot_scaling(points, {}, ylabel="onset (training step), mean over runs", xlabel=xlabel)
