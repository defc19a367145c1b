"""The evidence, picture by picture, in the order in which a doubter would ask."""

from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures, pages
from causal_circuits.pages import Section
from causal_circuits.studies.recover_and_prove.measure import Findings
from causal_circuits.studies.tables import p_text


def make_sections(f: Findings) -> list[Section]:
    """The graph, how it formed, and what the heads do."""
    return [
        show_film(f),
        show_graph(f),
        *show_training(f),
        show_gradient(f),
        *show_heads(f),
    ]


def show_film(f: Findings) -> Section:
    """Layer 0's attention step by step, as a graph."""
    return Section(
        "The graph while it forms",
        "Layer 0's attention at each recorded step, as arcs from key to query, as dark as the attention on them: true "
        "edges above the line, all others below. Move the slider, or play it.",
        body=figures.graph_film_html(f.record, f.task.graph),
    )


def show_graph(f: Findings) -> Section:
    """The graph to explore, what each position proposed, and what became of it."""
    candidates = pd.DataFrame(f.found.candidates)
    shown = candidates[["child", "parent", "weight", "information_share", "p_value", "accepted", "reason"]]
    truth = [(row.parent, row.child) in f.edges for row in candidates.itertuples()]
    return Section(
        "The graph that was found",
        f"Arcs run from parent to child: {f.count(f.recovery)} of {len(f.edges)} edges were found, "
        f"{len(f.recovery.false)} false ones drawn. Layer 0's attention proposes them (below): "
        f"{fmean(f.parent_attention):.3f} on the parent on average, {min(f.parent_attention):.3f} at least; rows of "
        "roots and of the query are unconstrained. The information of each is computed from sequences and their "
        "targets alone, without the model, and tells roots from children.",
        body=figures.interactive_graph(f.task.graph, f.found, edge_facts(f), head_figures(f)),
        table=shown.assign(p_value=shown["p_value"].map(p_text), true_edge=truth),
    )


def edge_facts(f: Findings) -> dict[tuple[int, int], dict[str, object]]:
    """What the graph tells of each edge, true or found."""
    effect, error = f.knock_out.effect.amax(dim=0), f.knock_out.standard_error.amax(dim=0)
    facts: dict[tuple[int, int], dict[str, object]] = {
        (parent, child): {
            "attention": float(f.attention[0, :, child, parent].max()),
            "effect of cutting it (nats)": f"{float(effect[child, parent]):.4f} ± {float(error[child, parent]):.4f}",
        }
        for parent, child in sorted({*f.edges, *f.recovery.false})
    }
    for c in f.found.candidates:
        if (c.parent, c.child) in facts:
            facts[c.parent, c.child] |= {"information": c.information, "p (Holm)": p_text(c.p_value)}
    return facts


def head_figures(f: Findings) -> dict[str, Any]:
    """Each head's mean attention: those of layer 0 beside the true graph."""
    drawn = {}
    for head in f.heads:
        pattern, name = f.attention[head.layer, head.head], f"L{head.layer}H{head.head} {head.role}"
        title = f"Attention of {name}, mean over sequences"
        if head.layer == 0:
            drawn[name] = figures.plot_attention_and_graph(pattern, f.task.graph, title=title)
        else:
            drawn[name] = figures.plot_matrix(pattern, title=title, label="attention weight")
    return drawn


def show_training(f: Findings) -> list[Section]:
    """The loss, and attention and gradient on the way there."""
    graph, r = f.task.graph, f.references
    lines = {
        "uniform": r.uniform,
        "best unigram": r.best_unigram,
        "edge posterior": r.edge_posterior,
        "exact Bayes": r.exact_bayes,
        "entropy": r.entropy,
    }
    views = [figures.sequence_view(seen, graph, roles=[head.role for head in f.heads]) for seen in f.examples]
    return [
        Section(
            "The loss",
            f"Training ends {f.excess:+.4f} nats from the edge posterior, the best prediction that uses the edges and "
            "ignores the roots. In the second figure the lowest curve is the predictor that it resembles on the way.",
            figures={
                "loss": figures.plot_loss(f.record, lines, test_loss=f.test_loss),
                "phases": figures.plot_phases(f.phases),
            },
        ),
        Section(
            "Attention and gradient, step by step",
            "Layer 0's attention at recorded steps; below it minus the gradient by its scores at the same steps: where "
            "it is red, a step of gradient descent raises the attention.",
            figures={
                "attention_film": figures.plot_film_strip(f.record, graph),
                "gradient_film": figures.plot_film_strip(f.record, graph, quantity="score_gradients"),
            },
        ),
        Section(
            "Attention on real sequences",
            f"The same on {len(views)} test sequences, head by head: hover a cell for its weight; the last position is "
            "the query, and in layer 1 an induction head looks at tokens whose parent equals it. The slider of the "
            "first goes through training.",
            body=pages.attention_html(views),
        ),
    ]


def show_gradient(f: Findings) -> Section:
    """The gradient before training beside the information that is its limit."""
    measured, graph = f.first_gradient, f.task.graph
    predicted = cc.information.score_gradient_of(f.information.value)
    r = correlation(measured, predicted)
    return Section(
        "The gradient and the mutual information",
        "At the start, in the paper's reduced model, minus the gradient of layer 0's attention scores tends in long "
        "contexts to the chi-squared information between positions, put through the softmax; at this length their "
        f"correlation is {r:.3f}.",
        figures={
            "gradient_matrix": figures.plot_matrix(
                measured, graph, title="Minus the gradient, before training", label="nats", diverging=True
            ),
            "information_matrix": figures.plot_matrix(
                predicted, graph, title="Predicted from chi-squared information", label="predicted", diverging=True
            ),
            "gradient": figures.plot_gradient_and_information(measured, predicted, graph, title=f"correlation {r:.3f}"),
        },
    )


def correlation(measured: Tensor, predicted: Tensor) -> float:
    """Over all entries below the diagonal and above the query's row."""
    below = torch.ones(measured.shape, dtype=torch.bool).tril(-1)
    below[-1] = False
    return float(torch.corrcoef(torch.stack([measured[below].double(), predicted[below].double()]))[0, 1])


def show_heads(f: Findings) -> list[Section]:
    """What each head does, and what breaks without it, or without one entry of its pattern."""
    scores = pd.DataFrame(f.heads, index=[f"L{head.layer}H{head.head}" for head in f.heads]).T
    shares = [(row["what"], row["method"], row["share_of_gain_lost"]) for row in f.ablation_rows]
    return [
        Section(
            "What each head does",
            "Scores are calibrated: 0 is uniform attention, 1 is perfect; the induction null is what is left of the "
            "score when positions take their parents' tokens from another sequence. Copying is judged where the copies "
            "are read: by the keys of layer 1, or by the logits.",
            figures={"heads": figures.plot_head_scores(f.heads)},
            table=scores.rename(lambda name: name.replace("_", " ")).rename_axis("score").reset_index(),
        ),
        Section(
            "What breaks when a head is ablated",
            "A bar at 1 means that the whole gain over the best unigram is gone; beyond 1 it is worse than that. In "
            "place of the head's output stands zero, its mean over the batch, its output on another sequence "
            "(resample) or at another position (permute).",
            figures={"ablation": figures.plot_ablation(shares)},
            table=f.ablation_rows,
        ),
        Section(
            "What breaks when an edge is cut",
            f"Cutting one attention entry at a time, true edges (outlined) are told from all others with AUROC "
            f"{f.auroc():.3f}; in the rows of roots the model may use an entry that is no edge, because a root's token "
            "tells about the transition matrix too. The query's row, which has no parent, is left blank.",
            figures={"knock_out": figures.plot_knock_out(f.knock_out, f.task.graph)},
        ),
    ]
