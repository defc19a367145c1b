"""The evidence, picture by picture, in the order in which a doubter would ask."""

from functools import partial
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Section
from causal_circuits.studies.recover_and_prove.measure import BETA_0, Findings
from causal_circuits.studies.tables import edge_table, p_text


def make_sections(f: Findings) -> list[Section]:
    return [show_film(f), show_graph(f), show_sequences(f), *show_gradient(f), *show_heads(f)]


def show_film(f: Findings) -> Section:
    r = f.references
    names = ("uniform", "best_unigram", "edge_posterior", "exact_bayes", "entropy")
    lines = {name.replace("_", " ").replace("bayes", "Bayes"): getattr(r, name) for name in names}
    loss, phases = (Figure(figsize=(4.9, 3.8), layout="constrained").add_subplot() for _ in range(2))
    figures.plot_loss(f.record, lines, test_loss=f.test_loss, ax=loss)
    figures.plot_phases(f.phases, ax=phases)
    return Section(
        "The graph while it forms",
        "One slider moves everything. Arcs run from key to query, as dark as layer 0's attention on them: true edges "
        "above the line, all others below. The edge posterior is the best prediction that uses the edges and ignores "
        "the roots; in the last figure the lowest curve is the predictor that the model resembles.",
        body=figures.graph_film_html(f.record, f.task.graph, beside=[loss, phases]),
    )


def plot_six_steps(f: Findings) -> Figure:
    """Layer 0's attention at six recorded steps, the first and the last among them."""
    attention = f.record.of_layer("attention", 0)[:, 0]
    chosen = np.unique(np.linspace(0, len(attention) - 1, 6).round().astype(int))
    return figures.plot_attentions({f"step {f.record.steps[i]:,}": attention[i] for i in chosen}, f.task.graph)


def show_graph(f: Findings) -> Section:
    return Section(
        "The graph that was found",
        f"Arcs run from parent to child: {f.count(f.recovery)} of {len(f.edges)} edges were found, "
        f"{len(f.recovery.false)} false ones drawn. Layer 0's attention proposes them: "
        f"{fmean(f.parent_attention):.3f} on the parent on average, {min(f.parent_attention):.3f} at least; rows of "
        "roots and of the query are unconstrained. The information of each is computed from sequences and their "
        "targets alone, without the model, and tells roots from children.",
        body=figures.interactive_graph(f.task.graph, f.found, edge_facts(f)),
        table=edge_table(f.found, f.task.graph),
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


def show_sequences(f: Findings) -> Section:
    roles = [head.role for head in f.heads]
    views = [figures.sequence_view(seen, f.task.graph, roles=roles) for seen in f.examples]
    return Section(
        "Attention on sequences",
        f"Both layers on {len(views)} test sequences, tokens with their positions; hover a cell for its weight. In "
        "layer 0 the true edges are outlined; in layer 1 an induction head looks, from the query (last row), at tokens "
        "whose parent equals the query. The slider of the first goes through training.",
        body="".join(views),
    )


def show_gradient(f: Findings) -> list[Section]:
    measured, graph = f.first_gradient * (f.task.d_vocab * f.task.n_ctx / BETA_0), f.task.graph
    predicted = cc.information.through_softmax(f.information.value)
    largest = float(predicted.abs().max())
    matrix = partial(figures.plot_matrix, graph=graph, label="in the unit of g", diverging=True, largest=largest)
    r = cc.compare_gradient(measured, predicted, graph).correlation
    query = torch.tensor([len(measured) - 1])
    shown, expected = (values.index_fill(0, query, torch.nan) for values in (measured, predicted))
    return [
        Section(
            "The gradient and the mutual information",
            "Before training, in the paper's reduced model: minus the gradient of layer 0's attention scores beside "
            "the chi-squared information between positions, put through the softmax, to which it tends in long "
            "contexts. One scale for both; the query's row, which has no parent, is left blank.",
            figures={
                "gradient_matrix": matrix(shown, title="Minus the gradient, before training"),
                "information_matrix": matrix(expected, title="Predicted from chi-squared information"),
            },
        ),
        Section(
            "Entry by entry",
            f"The same two, correlation {r:.3f}: a mark off the dashed line is what this context length changes.",
            figures={"gradient": figures.plot_gradient_vs_information(measured, predicted, graph)},
        ),
    ]


def show_heads(f: Findings) -> list[Section]:
    names = [f"L{head.layer}H{head.head} {head.role}" for head in f.heads]
    scores = pd.DataFrame(f.heads, index=names).T.rename(lambda name: name.replace("_", " "))
    drawn = scores.loc[["previous token score", "parent score", "induction score", "copying score"]].T.to_dict()
    shares = [(row["what"], row["method"], row["share_of_gain_lost"]) for row in f.ablation_rows]
    return [
        Section(
            "What each head does",
            "Scores are calibrated: 0 is uniform attention, 1 is perfect; the induction null is what is left of the "
            "score when positions take their parents' tokens from another sequence. Copying is judged where the copies "
            "are read: by the keys of layer 1, or by the logits.",
            figures={"heads": figures.plot_groups(drawn, xlabel="score", levels={"uniform": 0.0, "perfect": 1.0})},
            table=scores.rename_axis("score").reset_index(),
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
