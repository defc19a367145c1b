"""What was found, in the order in which a doubter would ask: checks, numbers, evidence."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures, pages
from causal_circuits.pages import Check, Section
from causal_circuits.studies.recover_and_prove.measure import N_INFORMATION, Findings
from causal_circuits.studies.study import Report


def make_report(task: cc.InContextTask, findings: Findings) -> Report:
    """Checks, numbers and evidence of one run."""
    compared = Comparison(task, findings)
    comparison = figures.plot_graph_comparison(task.graph, findings.found)
    return Report(
        title=f"Did this transformer learn the graph? ({task.graph.graph.get('name', 'forest')})",
        checks=make_checks(compared),
        results=make_results(compared),
        sections=[
            show_graph(compared),
            show_formation(compared),
            show_loss(compared),
            show_attention(compared),
            show_steps(compared, "attention"),
            show_sequences(compared),
            show_gradient(compared),
            show_steps(compared, "score_gradients"),
            show_heads(compared),
            show_ablations(compared),
            show_knock_out(compared),
        ],
        summary=summarize(compared),
        about={"task": repr(task), "training": f"{compared.start}; {findings.record.path} path"},
        saved={
            "model": partial(cc.save_model, findings.model),
            "record": findings.record.save,
            "figures/graph": partial(figures.save_figure, comparison),
        },
    )


@dataclass(frozen=True)
class Comparison:
    """What was found beside what is true."""

    task: cc.InContextTask
    of: Findings

    @cached_property
    def recovery(self) -> cc.GraphRecovery:
        """By attention and the test for information."""
        return cc.compare_graphs(self.task.graph, self.of.found)

    @cached_property
    def by_attention(self) -> cc.GraphRecovery:
        """By attention alone."""
        return cc.compare_graphs(self.task.graph, self.of.found.from_attention)

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """True edges inside the context."""
        return sorted(cc.latent_edges(self.task.graph), key=lambda edge: edge[1])

    @cached_property
    def parent_attention(self) -> list[float]:
        """Mean attention on each true edge: the largest over the heads of layer 0."""
        return [float(self.of.attention[0, :, child, parent].max()) for parent, child in self.edges]

    @cached_property
    def effects(self) -> tuple[Tensor, Tensor]:
        """Knock-out effects of true edges, and of all other causal entries outside the query's row."""
        effect, is_edge = self.of.knock_out.effect.amax(dim=0), cc.parent_mask(self.task)
        causal = torch.ones_like(is_edge).tril()
        causal[-1] = False
        return effect[is_edge & causal], effect[causal & ~is_edge]

    @property
    def excess(self) -> float:
        """Test loss above the edge posterior's, nats."""
        return self.of.test_loss - self.of.references.edge_posterior

    @property
    def start(self) -> str:
        """What the model held before the first step."""
        if self.of.warm_start is None:
            return "from zero, nothing written in"
        return (
            "from a warm start: layer 1's match and the read-out were written in, "
            f"{self.of.warm_start:g} times the identity"
        )

    def auroc(self, children_only: bool = False) -> float:
        """How well knock-out effects tell true edges from other entries."""
        effect = self.of.knock_out.effect.amax(dim=0)
        return cc.edge_auroc(effect, self.task.graph, children_only=children_only)

    def found(self, recovery: cc.GraphRecovery) -> int:
        """True edges that were found."""
        return len(self.edges) - len(recovery.missing)

    def least_share(self, head: str) -> float:
        """The share of the gain that ablating a head loses at least, over the methods."""
        return min(self.of.share_of_gain(result) for what, result in self.of.ablations if what == head)


def make_checks(c: Comparison) -> list[Check]:
    """The claims, each with the number that decides it."""
    heads, n_edges = c.of.heads, len(c.edges)
    roles = [head.role for head in heads]
    one_each = sum(role in ("previous-token", "parent") for role in roles) == 1 == roles.count("induction")
    least = min(c.least_share(name_of(head)) for head in heads)
    return [
        Check(
            c.recovery.exact,
            "Layer 0's attention proposes an edge a position; those that have information are the true graph",
            f"{c.found(c.recovery)} of {n_edges} parents, {len(c.recovery.false)} false edges, with the information "
            f"test on {N_INFORMATION:,} fresh sequences, which needs no model; {c.found(c.by_attention)} of {n_edges} "
            f"and {len(c.by_attention.false)} false by attention alone",
        ),
        Check(
            c.excess <= 0.05,
            "It predicts about as well as the posterior that knows the edges (within 0.05 nats)",
            f"test loss {c.of.test_loss:.4f}, edge posterior {c.of.references.edge_posterior:.4f}, excess "
            f"{c.excess:+.4f} nats",
        ),
        Check(
            one_each and min(head.copying_score for head in heads) >= 0.5,
            "One head attends to the parent and one does induction, and what both copy is read as the token it is "
            "(copying at least 0.5)",
            "; ".join(f"{name_of(head)}: {head.role}, copying {head.copying_score:.2f}" for head in heads),
        ),
        Check(
            least >= 0.9,
            "Each of the two heads is needed: ablating either loses at least 90% of the gain, by every method",
            f"least share of the gain lost: {least:.0%}",
        ),
        Check(
            c.auroc(children_only=True) >= 0.99,
            "Cutting attention entries one by one, in the row of every child it is the true edge that hurts",
            f"AUROC {c.auroc(children_only=True):.3f} over the rows of children, {c.auroc():.3f} with those of roots",
        ),
    ]


def make_results(c: Comparison) -> dict[str, Any]:
    """Every number, for results.json."""
    on_edges, elsewhere = c.effects
    record = c.of.record
    return {
        "config": {"n_ctx": c.task.n_ctx, "training": record.config},
        "loss": {"test": c.of.test_loss, "excess_over_edge_posterior": c.excess} | asdict(c.of.references),
        "graph": {
            "parents": cc.graph_parents(c.task.graph),
            "found_parents": cc.graph_parents(c.of.found),
            "edges": len(c.edges),
            "recovered": c.found(c.recovery),
            "exact": c.recovery.exact,
            "false_edges": len(c.recovery.false),
            "evidence": c.of.found.evidence,
            "attention_alone": {
                "recovered": c.found(c.by_attention),
                "missing": c.by_attention.missing,
                "false": c.by_attention.false,
            },
            "mean_parent_attention": fmean(c.parent_attention),
            "min_parent_attention": min(c.parent_attention),
            "candidates": [asdict(candidate) for candidate in c.of.found.candidates],
        },
        "heads": [asdict(head) for head in c.of.heads],
        "ablation": [
            {
                "what": what,
                "method": result.method,
                "loss": result.loss,
                "standard_error": result.standard_error,
                "share_of_gain_lost": c.of.share_of_gain(result),
            }
            for what, result in c.of.ablations
        ],
        "knock_out": {
            "auroc": c.auroc(),
            "auroc_rows_of_children": c.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": {
            "train_s": record.seconds,
            "steps": len(record.losses),
            "train_sequences_per_s": record.sequences_per_s,
            "path": record.path,
        },
        "training": {"start": c.start} | asdict(c.of.health),
    }


def summarize(c: Comparison) -> list[tuple[str, str]]:
    """The closing table."""
    n_edges, (on_edges, elsewhere), record, references = len(c.edges), c.effects, c.of.record, c.of.references
    advice = [("training", f"{c.of.health.verdict}: {c.of.health.advice}")] if c.of.health.advice else []
    return [
        (
            "graph",
            f"{c.found(c.recovery)} of {n_edges} parents found, {len(c.recovery.false)} false edges, by attention and "
            f"the information in {N_INFORMATION:,} fresh sequences (computed without the model)",
        ),
        (
            "",
            f"{c.found(c.by_attention)} of {n_edges} and {len(c.by_attention.false)} false by attention alone; "
            f"attention to the parent {fmean(c.parent_attention):.3f} on average, {min(c.parent_attention):.3f} at "
            "least",
        ),
        (
            "loss",
            f"{c.of.test_loss:.4f} = edge posterior {references.edge_posterior:.4f} {c.excess:+.4f} nats (best unigram "
            f"{references.best_unigram:.4f})",
        ),
        *(
            (
                f"head {name_of(head)}",
                f"{head.role}: parent {head.parent_score:.2f}, induction {head.induction_score:.2f}; ablated, "
                f"{c.least_share(name_of(head)):.0%} or more of the gain is lost",
            )
            for head in c.of.heads
        ),
        ("training", c.start),
        *advice,
        (
            "",
            f"{record.seconds:.1f} s in all ({record.sequences_per_s:,.0f} sequences/s, {record.path} path)",
        ),
        (
            "knock-out",
            f"AUROC {c.auroc():.3f} ({c.auroc(children_only=True):.3f} in rows of children); a true edge costs "
            f"{float(on_edges.mean()):.4f} nats, another entry {float(elsewhere.mean()):.4f}",
        ),
    ]


# ---- the evidence, section by section


def show_graph(c: Comparison) -> Section:
    """The graph to explore, what each position proposed, and what became of it."""
    compared = {
        "attention alone: at least .5 and the largest of its row": c.by_attention,
        f"and information in {N_INFORMATION:,} fresh sequences, without the model": c.recovery,
    }
    rows = [
        {
            "evidence": evidence,
            "parents found": f"{c.found(recovery)} of {len(c.edges)}",
            "false edges": ", ".join(f"{parent} -> {child}" for parent, child in recovery.false) or "none",
        }
        for evidence, recovery in compared.items()
    ]
    return Section(
        "The graph",
        f"Arcs run from parent to child: {c.found(c.recovery)} of {len(c.edges)} edges were found, "
        f"{len(c.recovery.false)} false ones drawn. Attention proposes the edges; the information of each is computed "
        "from sequences and their targets alone, without the model, and tells roots from children.",
        body=pages.table_html(rows, caption="The graph by attention alone, and with the test")
        + figures.interactive_graph(c.task.graph, c.of.found, edge_facts(c), head_figures(c)),
        table=pd.DataFrame(candidate_rows(c)),
    )


def candidate_rows(c: Comparison) -> list[dict[str, object]]:
    """One row for each edge that attention proposes."""
    return [
        {
            "position": candidate.child,
            "attends to": candidate.parent,
            "attention": round(candidate.weight, 3),
            "share of best information": round(candidate.information_share, 3),
            "p (Holm)": p_value(candidate.p_value),
            "verdict": "edge" if candidate.accepted else "no edge",
            "truth": "edge" if (candidate.parent, candidate.child) in c.edges else "no edge",
            "decided by": candidate.decided_by,
            "why": candidate.reason,
        }
        for candidate in c.of.found.candidates
    ]


def edge_facts(c: Comparison) -> dict[tuple[int, int], dict[str, object]]:
    """What the graph tells of each edge, true or found."""
    effect, error = c.of.knock_out.effect.amax(dim=0), c.of.knock_out.standard_error.amax(dim=0)
    facts: dict[tuple[int, int], dict[str, object]] = {
        (parent, child): {
            "attention": float(c.of.attention[0, :, child, parent].max()),
            "effect of cutting it (nats)": f"{float(effect[child, parent]):.4f} ± {float(error[child, parent]):.4f}",
        }
        for parent, child in sorted({*c.edges, *c.recovery.false})
    }
    for candidate in c.of.found.candidates:
        if (candidate.parent, candidate.child) in facts:
            more = {"information": candidate.information, "p (Holm)": p_value(candidate.p_value)}
            facts[candidate.parent, candidate.child] |= more
    return facts


def head_figures(c: Comparison) -> dict[str, Any]:
    """Each head's mean attention: those of layer 0 beside the true graph."""
    drawn = {}
    for head in c.of.heads:
        pattern, name = c.of.attention[head.layer, head.head], f"{name_of(head)} {head.role}"
        title = f"Attention of {name}, mean over sequences"
        if head.layer == 0:
            drawn[name] = figures.plot_attention_and_graph(pattern, c.task.graph, title=title)
        else:
            drawn[name] = figures.plot_matrix(pattern, title=title, label="attention weight")
    return drawn


def show_formation(c: Comparison) -> Section:
    """Layer 0's attention step by step, and the predictors that the model was near."""
    return Section(
        "The graph while it forms",
        "Layer 0's attention at each recorded step, true edges above the line, all others below: move the slider, or "
        "play it. Beside it, the distance to named predictors: the model is like the lowest.",
        figures={"phases": figures.plot_phases(c.of.phases)},
        body=figures.graph_film_html(c.of.record, c.task.graph),
    )


def show_loss(c: Comparison) -> Section:
    """The loss between its reference lines."""
    r = c.of.references
    lines = {
        "uniform": r.uniform,
        "best unigram": r.best_unigram,
        "edge posterior": r.edge_posterior,
        "exact Bayes": r.exact_bayes,
        "entropy": r.entropy,
    }
    return Section(
        "The loss",
        f"Training ends {c.excess:+.4f} nats from the edge posterior, the best prediction that uses the edges and "
        "ignores the roots.",
        figures={"loss": figures.plot_loss(c.of.record, lines, test_loss=c.of.test_loss)},
    )


def show_attention(c: Comparison) -> Section:
    """Layer 0's pattern at the end, and on the way there."""
    graph, title = c.task.graph, "Attention of L0H0, mean over sequences"
    return Section(
        "The attention",
        "Layer 0's attention from each position, on average over sequences, with the parents outlined: "
        f"{fmean(c.parent_attention):.3f} on the parent on average, {min(c.parent_attention):.3f} at least. Rows of "
        "roots and of the query are unconstrained.",
        figures={"attention": figures.plot_attention_and_graph(c.of.attention[0, 0], graph, title=title)},
    )


def show_steps(c: Comparison, quantity: Literal["attention", "score_gradients"]) -> Section:
    """Layer 0's pattern, or its gradient, at recorded steps of training."""
    name, what = ("film", "attention") if quantity == "attention" else ("gradient_film", "gradient")
    return Section(
        f"The {what} while it trains",
        f"Layer 0's {what} at recorded steps of this training.",
        figures={name: figures.plot_film_strip(c.of.record, c.task.graph, quantity=quantity)},
    )


def show_sequences(c: Comparison) -> Section:
    """CircuitsVis views of all heads on example sequences, the first through all of training."""
    roles = [head.role for head in c.of.heads]
    views = [figures.sequence_view(seen, c.task.graph, roles=roles) for seen in c.of.examples]
    return Section(
        "Attention on real sequences",
        f"The same on {len(views)} test sequences, head by head: hover a cell for its weight; the last position is the "
        "query, and in layer 1 an induction head looks at tokens whose parent equals it. The slider of the first goes "
        "through training.",
        body=pages.attention_html(views),
    )


def show_gradient(c: Comparison) -> Section:
    """The gradient before training beside the information that is its limit."""
    measured, graph = c.of.first_gradient, c.task.graph
    predicted = cc.score_gradient_of(c.of.information.value)
    r = correlation(measured, predicted)
    return Section(
        "The gradient and the mutual information",
        "At the start, in the paper's reduced model, minus the gradient of layer 0's attention scores tends in long "
        "contexts to the chi-squared information between positions, put through the softmax; at this length their "
        f"correlation is {r:.3f}.",
        figures={
            "gradient": figures.plot_gradient_and_information(measured, predicted, graph, title=f"correlation {r:.3f}"),
            "gradient_matrix": figures.plot_matrix(
                measured, graph, title="Minus the gradient, before training", label="nats", diverging=True
            ),
            "information_matrix": figures.plot_matrix(
                predicted,
                graph,
                title="Predicted from chi-squared information",
                label="g through the softmax",
                diverging=True,
            ),
        },
    )


def correlation(measured: Tensor, predicted: Tensor) -> float:
    """Over all entries below the diagonal and above the query's row."""
    below = torch.ones(measured.shape, dtype=torch.bool).tril(-1)
    below[-1] = False
    return float(torch.corrcoef(torch.stack([measured[below].double(), predicted[below].double()]))[0, 1])


def show_heads(c: Comparison) -> Section:
    """Calibrated scores of every head, with TransformerLens's raw ones."""
    rows = [
        {
            "head": name_of(head),
            "role": head.role,
            "previous token": round(head.previous_token_score, 3),
            "parent": round(head.parent_score, 3),
            "induction": round(head.induction_score, 3),
            "induction null": f"{head.induction_null:.3f} ± {head.induction_standard_error:.3f}",
            "copying": round(head.copying_score, 3),
            "copies read by": head.copies_read_by,
            "parent, raw": round(head.transformer_lens_parent_score, 3),
            "induction, raw": round(head.transformer_lens_induction_score, 3),
        }
        for head in c.of.heads
    ]
    return Section(
        "What each head does",
        "Scores are calibrated: 0 is uniform attention, 1 is perfect; the induction null is what is left of the score "
        "when positions take their parents' tokens from another sequence. Copying is judged where the copies are read: "
        "by the keys of layer 1, or by the logits.",
        figures={"heads": figures.plot_head_scores(c.of.heads)},
        table=pd.DataFrame(rows),
    )


def show_ablations(c: Comparison) -> Section:
    """The loss with each head ablated, by every method."""
    shares = [(what, result, c.of.share_of_gain(result)) for what, result in c.of.ablations]
    rows = [
        {
            "head": what,
            "method": result.method,
            "loss": round(result.loss, 4),
            "whole model": round(result.baseline_loss, 4),
            "standard error": round(result.standard_error, 4),
            "share of gain lost": f"{share:.0%}",
        }
        for what, result, share in shares
    ]
    return Section(
        "What breaks when a head is ablated",
        "A bar at 1 means that the whole gain over the best unigram is gone; beyond 1 it is worse than that.",
        figures={"ablation": figures.plot_ablation([(what, result.method, share) for what, result, share in shares])},
        table=pd.DataFrame(rows),
    )


def show_knock_out(c: Comparison) -> Section:
    """The effect of cutting each attention entry of layer 0, beside the true graph."""
    graph, adjacency = c.task.graph, cc.parent_mask(c.task).float()
    return Section(
        "What breaks when an edge is cut",
        f"Cutting one attention entry at a time, true edges (outlined) are told from all others with AUROC "
        f"{c.auroc():.3f}; in the rows of roots the model may use an entry that is no edge, because a root's token "
        "tells about the transition matrix too. The query's row, which has no parent, is left blank.",
        figures={
            "knock_out": figures.plot_knock_out(c.of.knock_out, graph),
            "adjacency": figures.plot_matrix(adjacency, graph, title="The true graph", label="1 at an edge"),
        },
    )


def name_of(head: cc.HeadScores) -> str:
    """L0H1 is head 1 of layer 0."""
    return f"L{head.layer}H{head.head}"


def p_value(p: float) -> str:
    """A p-value as text."""
    return f"{p:.1e}" if p > 1e-300 else "< 1e-300"
