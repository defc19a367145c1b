"""The evidence, picture by picture."""

from dataclasses import asdict
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures, pages
from causal_circuits.pages import Section
from causal_circuits.studies.recover_and_prove.comparison import Comparison


def make_sections(c: Comparison) -> list[Section]:
    """In the order in which a doubter would ask."""
    return [
        show_graph(c),
        show_formation(c),
        show_loss(c),
        show_attention(c),
        show_steps(c, "attention"),
        show_sequences(c),
        show_gradient(c),
        show_steps(c, "score_gradients"),
        show_heads(c),
        show_ablations(c),
        show_knock_out(c),
    ]


def show_graph(c: Comparison) -> Section:
    """The graph to explore, what each position proposed, and what became of it."""
    candidates = pd.DataFrame(asdict(candidate) for candidate in c.of.found.candidates)
    shown = candidates[["child", "parent", "weight", "information_share", "p_value", "accepted", "reason"]]
    truth = [(row.parent, row.child) in c.edges for row in candidates.itertuples()]
    return Section(
        "The graph",
        f"Arcs run from parent to child: {c.found(c.recovery)} of {len(c.edges)} edges were found, "
        f"{len(c.recovery.false)} false ones drawn. Attention proposes the edges (below); the information of each is "
        "computed from sequences and their targets alone, without the model, and tells roots from children.",
        body=figures.interactive_graph(c.task.graph, c.of.found, edge_facts(c), head_figures(c)),
        table=shown.assign(p_value=shown["p_value"].map(p_value), true_edge=truth),
    )


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
        pattern, name = c.of.attention[head.layer, head.head], f"L{head.layer}H{head.head} {head.role}"
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
        "First the distance to named predictors (the model is like the lowest), then layer 0's attention at each "
        "recorded step, true edges above the line, all others below: move the slider, or play it.",
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
    predicted = cc.information.score_gradient_of(c.of.information.value)
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
    return Section(
        "What each head does",
        "Scores are calibrated: 0 is uniform attention, 1 is perfect; the induction null is what is left of the score "
        "when positions take their parents' tokens from another sequence. Copying is judged where the copies are read: "
        "by the keys of layer 1, or by the logits.",
        figures={"heads": figures.plot_head_scores(c.of.heads)},
        table=pd.DataFrame(asdict(head) for head in c.of.heads),
    )


def show_ablations(c: Comparison) -> Section:
    """The loss with each head ablated, by every method, and the share of the gain that is lost."""
    shares = [(row["what"], row["method"], row["share_of_gain_lost"]) for row in c.ablations]
    return Section(
        "What breaks when a head is ablated",
        "A bar at 1 means that the whole gain over the best unigram is gone; beyond 1 it is worse than that.",
        figures={"ablation": figures.plot_ablation(shares)},
        table=pd.DataFrame(c.ablations),
    )


def show_knock_out(c: Comparison) -> Section:
    """The effect of cutting each attention entry of layer 0, beside the true graph."""
    graph, adjacency = c.task.graph, cc.heads.parent_mask(c.task).float()
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


def p_value(p: float) -> str:
    """A p-value as text."""
    return f"{p:.1e}" if p > 1e-300 else "< 1e-300"
