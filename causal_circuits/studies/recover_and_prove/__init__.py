"""Train, recover the graph, detect the heads, prove the circuit: what `induction_head` and `causal_graph` share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import networkx as nx

import causal_circuits as cc
from causal_circuits import figures, pages
from causal_circuits.pages import Check
from causal_circuits.studies.recover_and_prove.evidence import make_sections, plot_six_steps
from causal_circuits.studies.recover_and_prove.measure import N_INFORMATION, Findings, measure
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import timing_of


@dataclass(frozen=True, kw_only=True)
class RecoverAndProve(Study):
    """A two-layer disentangled transformer, trained on sequences of one graph and taken apart."""

    d_vocab: int = 3  #: number of tokens
    n_ctx: int | None = 20  #: context length, query included
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 4500  #: training steps of 1,024 fresh sequences
    warm_start: bool = False  #: write in layer 1's match and the read-out first: only layer 0 is learned

    @abstractmethod
    def make_graph(self) -> nx.DiGraph:
        """The graph that the flags name."""

    @cached_property
    def task(self) -> cc.InContextTask:
        return cc.InContextTask(self.make_graph(), d_vocab=self.d_vocab, alpha=self.alpha)

    def check(self) -> None:
        at_least(2, steps=self.steps)
        if not cc.latent_edges(self.task.graph):
            raise ValueError("the graph has no edge between context positions, so nothing to recover; name a parent")

    def cells(self) -> list[Cell]:
        graph = self.task.graph
        settings = self.flags("d_vocab", "alpha", "steps", "warm_start", "seed")
        settings |= {"parents": cc.graphs.graph_parents(graph), "name": graph.graph.get("name", "forest")}
        return [Cell("training", measure, settings, scratch=True, progress=True)]

    def report(self, rows: Mapping[str, Findings]) -> Report:
        f = rows["training"]
        graph, title = f.task.graph, "Attention of L0H0, mean over sequences"
        pictures: dict[str, Any] = {
            "graph": figures.plot_graph_comparison(graph, f.found),
            "attention": figures.plot_attention_and_graph(f.attention[0, 0], graph, title=title),
            "attention_film": plot_six_steps(f),
        }
        speed = f"{f.record.seconds:.1f} s in all ({f.record.sequences_per_s:,.0f} sequences/s, {f.record.path} path)"
        advice = f.health.advice
        return Report(
            title=f"Did this transformer learn the graph? ({graph.graph['name']})",
            checks=make_checks(f),
            results=make_results(f),
            sections=make_sections(f),
            summary=[("training", f"{f.start}; {speed}"), *([("", f"{f.health.verdict}: {advice}")] if advice else [])],
            about={"task": repr(f.task), "training": f"{f.start}; {f.record.path} path"},
            saved={
                "model": partial(cc.save_model, f.model),
                "record": f.record.save,
                **{f"figures/{name}": partial(pages.save_figure, drawn) for name, drawn in pictures.items()},
            },
        )


def make_checks(f: Findings) -> list[Check]:
    n_edges, roles = len(f.edges), [head.role for head in f.heads]
    one_each = sum(role in ("previous-token", "parent") for role in roles) == 1 == roles.count("induction")
    least = min(row["share_of_gain_lost"] for row in f.ablation_rows)
    on_edges, elsewhere = (float(effects.mean()) for effects in f.effects)
    return [
        Check(
            f.recovery.exact,
            "Layer 0's attention proposes an edge a position; those that have information are the true graph",
            f"{f.count(f.recovery)} of {n_edges} parents, {len(f.recovery.false)} false edges, with the information "
            f"test on {N_INFORMATION:,} fresh sequences, which needs no model; {f.count(f.by_attention)} of {n_edges} "
            f"and {len(f.by_attention.false)} false by attention alone; attention to the parent "
            f"{fmean(f.parent_attention):.3f} on average, {min(f.parent_attention):.3f} at least",
        ),
        Check(
            f.excess <= 0.05,
            "It predicts about as well as the posterior that knows the edges (within 0.05 nats)",
            f"test loss {f.test_loss:.4f}, edge posterior {f.references.edge_posterior:.4f}, excess "
            f"{f.excess:+.4f} nats (best unigram {f.references.best_unigram:.4f})",
        ),
        Check(
            one_each and min(head.copying_score for head in f.heads) >= 0.5,
            "One head attends to the parent and one does induction, and what both copy is read as the token it is "
            "(copying at least 0.5)",
            "; ".join(
                f"L{head.layer}H{head.head}: {head.role} (parent {head.parent_score:.2f}, induction "
                f"{head.induction_score:.2f}), copying {head.copying_score:.2f}"
                for head in f.heads
            ),
        ),
        Check(
            least >= 0.9,
            "Each of the two heads is needed: ablating either loses at least 90% of the gain, by every method",
            f"least share of the gain lost: {least:.0%}",
        ),
        Check(
            f.auroc(children_only=True) >= 0.99,
            "Cutting attention entries one by one, in the rows of children true edges hurt most (AUROC at least 0.99)",
            f"AUROC {f.auroc(children_only=True):.3f} over the rows of children, {f.auroc():.3f} with those of roots; "
            f"a true edge costs {on_edges:.4f} nats, another entry {elsewhere:.4f}",
        ),
    ]


def make_results(f: Findings) -> dict[str, Any]:
    on_edges, elsewhere = f.effects
    return {
        "config": {"n_ctx": f.task.n_ctx, "training": f.record.config},
        "loss": {"test": f.test_loss, "excess_over_edge_posterior": f.excess} | asdict(f.references),
        "graph": {
            "parents": cc.graphs.graph_parents(f.task.graph),
            "found_parents": cc.graphs.graph_parents(f.found),
            "edges": len(f.edges),
            "recovered": f.count(f.recovery),
            "exact": f.recovery.exact,
            "false_edges": len(f.recovery.false),
            "evidence": f.found.evidence,
            "attention_alone": {
                "recovered": f.count(f.by_attention),
                "missing": f.by_attention.missing,
                "false": f.by_attention.false,
            },
            "mean_parent_attention": fmean(f.parent_attention),
            "min_parent_attention": min(f.parent_attention),
            "candidates": f.found.candidates,
        },
        "heads": f.heads,
        "ablation": f.ablation_rows,
        "knock_out": {
            "auroc": f.auroc(),
            "auroc_rows_of_children": f.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": timing_of(f.record),
        "training": {"start": f.start} | asdict(f.health),
    }
