"""The figures and the page of `recover_and_prove.py`: what was found, in the order in which a doubter would ask.

Not a script. Every section says in one sentence what its picture shows.
"""

from pathlib import Path
from typing import Any

import torch
from findings import N_INFORMATION, Findings, share_of_gain

import causal_circuits as cc
from causal_circuits import figures


def draw_figures(findings: Findings) -> dict[str, Any]:
    """Every figure by the name of its file."""
    f, graph = findings, findings.task.graph
    predicted = cc.score_gradient_of(f.information.value)
    adjacency = cc.parent_mask(f.task).float()
    return {
        "loss": figures.plot_loss(f.record, reference_lines(f), test_loss=f.test_loss),
        "graph": figures.plot_graph_comparison(graph, f.found),
        "attention": figures.plot_attention_and_graph(
            f.attention[0, 0], graph, title="Attention of L0H0, mean over sequences"
        ),
        "film": figures.plot_film_strip(f.record, graph),
        "gradient": figures.plot_gradient_and_information(
            f.first_gradient, predicted, graph, title=f"correlation {correlation(f.first_gradient, predicted):.3f}"
        ),
        "gradient_matrix": figures.plot_matrix(
            f.first_gradient,
            graph,
            title="Minus the gradient, before training",
            label="nats",
            diverging=True,
        ),
        "information_matrix": figures.plot_matrix(
            predicted,
            graph,
            title="Predicted from chi-squared information",
            label="g through the softmax",
            diverging=True,
        ),
        "gradient_film": figures.plot_film_strip(f.record, graph, quantity="score_gradients"),
        "heads": figures.plot_head_scores(f.heads),
        "ablation": figures.plot_ablation([(what, r.method, share_of_gain(f, r)) for what, r in f.ablations]),
        "adjacency": figures.plot_matrix(adjacency, graph, title="The true graph", label="1 at an edge"),
        "knock_out": figures.plot_knock_out(f.knock_out, graph),
        "phases": figures.plot_phases(f.phases),
    }


def reference_lines(findings: Findings) -> dict[str, float]:
    """The named lines of the loss figure."""
    r = findings.references
    return {
        "uniform": r.uniform,
        "best unigram": r.best_unigram,
        "edge posterior": r.edge_posterior,
        "exact Bayes": r.exact_bayes,
        "entropy": r.entropy,
    }


def correlation(measured: torch.Tensor, predicted: torch.Tensor) -> float:
    """Over all entries below the diagonal and above the query's row."""
    below = torch.ones(measured.shape, dtype=torch.bool).tril(-1)
    below[-1] = False
    return float(torch.corrcoef(torch.stack([measured[below].double(), predicted[below].double()]))[0, 1])


def write_page(findings: Findings, content: dict[str, Any], command: str, path: Path) -> None:
    """One self-contained page beside the folder of figures: the verdict, then the evidence."""
    figures.write_report(
        path,
        title=f"Did this transformer learn the graph? ({findings.task.graph.graph.get('name', 'forest')})",
        verdict=verdict(findings),
        sections=sections(findings, path.parent / "figures", command),
        meta={
            "task": repr(findings.task),
            "command": command,
            "seed": str(findings.seed),
            "wall time": f"{findings.seconds:.1f} s",
            "training": f"{findings.start}; {findings.record.seconds:.1f} s, {findings.record.path} path",
            **{name: str(number) for name, number in content["versions"].items()},
        },
    )


def verdict(findings: Findings) -> list[figures.Check]:
    """The claims, each with the number that decides it."""
    f, n_edges = findings, len(findings.context_edges)
    shares = {what: min(share_of_gain(f, r) for other, r in f.ablations if other == what) for what, _ in f.ablations}
    excess = f.test_loss - f.references.edge_posterior
    copiers = [head for head in f.heads if head.role in ("previous-token", "parent")]
    inducers = [head for head in f.heads if head.role == "induction"]
    least = min(shares.values())
    return [
        figures.Check(
            f.recovery.exact,
            "Layer 1's attention (L0 in TransformerLens's count) proposes an edge a position; those that have "
            "information are the true graph",
            f"{f.n_recovered} of {n_edges} parents, {len(f.recovery.false)} false edges, with the information test on "
            f"{N_INFORMATION:,} fresh sequences, which needs no model; {f.n_by_attention} of {n_edges} and "
            f"{len(f.by_attention.false)} false by attention alone",
        ),
        figures.Check(
            excess <= 0.05,
            "It predicts about as well as the posterior that knows the edges (within 0.05 nats)",
            f"test loss {f.test_loss:.4f}, edge posterior {f.references.edge_posterior:.4f}, excess {excess:+.4f} nats",
        ),
        figures.Check(
            len(copiers) == 1 and len(inducers) == 1 and min(h.copying_score for h in f.heads) >= 0.5,
            "One head attends to the parent and one does induction, and what both copy is read as the token it is "
            "(copying at least 0.5)",
            "; ".join(f"L{h.layer}H{h.head}: {h.role}, copying {h.copying_score:.2f}" for h in f.heads),
        ),
        figures.Check(
            least >= 0.9,
            "Each of the two heads is needed: ablating either loses at least 90% of the gain, by every method",
            f"least share of the gain lost: {least:.0%}",
        ),
        figures.Check(
            f.auroc(children_only=True) >= 0.99,
            "Cutting attention entries one by one, in the row of every child it is the true edge that hurts",
            f"AUROC {f.auroc(children_only=True):.3f} over the rows of children, {f.auroc():.3f} with those of roots",
        ),
    ]


def sections(findings: Findings, folder: Path, command: str) -> list[figures.Section]:
    """The evidence, picture by picture, with the figures saved in a folder."""
    f = findings

    def section(title: str, sentence: str, *names: str, wide: str = "", more: str = "") -> figures.Section:
        shown = [figures.figure_html(folder / name, alt=f"{title}: {sentence}") for name in (*names, wide) if name]
        beside, below = (shown[:-1], shown[-1]) if wide else (shown, "")
        body = f'<div class="side-by-side">{"".join(beside)}</div>{below}{more}'
        return figures.Section(title, sentence, body, command)

    return [
        section(
            "The graph",
            f"Arcs run from parent to child: {f.n_recovered} of "
            f"{len(f.context_edges)} edges were found, {len(f.recovery.false)} false ones drawn; a position that "
            "attends somewhere without gaining information is a root. Attention proposes the edges; the information is "
            "computed from sequences and their target laws alone, without the model.",
            more=figures.table_html(evidence_rows(f), caption="The graph by attention alone, and with the test")
            + figures.interactive_graph(f.task.graph, f.found, edge_facts(f), head_figures(f))
            + figures.table_html(
                edge_rows(f), caption="What attention proposed for each position, and what became of it"
            ),
        ),
        section(
            "The graph while it forms",
            "Layer 1's attention at each recorded step, true edges above the line, all others below: move the slider, "
            "or play it. Below, the predictor that the model behaves like, phase by phase.",
            more=figures.graph_film_html(f.record, f.task.graph)
            + figures.figure_html(
                folder / "phases", alt="KL from named predictors to the model, at each recorded step"
            ),
        ),
        section(
            "The loss",
            f"Training ends {f.test_loss - f.references.edge_posterior:+.4f} nats from the edge posterior, the best "
            "prediction that uses the edges and ignores the roots.",
            "loss",
        ),
        section(
            "The attention",
            "Layer 1 attends from each position to its parent (outlined), on average over sequences, ever more while it "
            "trains; roots and the query have no parent. The last state stands large under the graph.",
            wide="film",
        ),
        section(
            "Attention on real sequences",
            "The same on three test sequences, head by head: hover a cell for its weight; the last position is the "
            "query, and in layer 2 it looks at tokens whose parent equals it. The slider of the first goes through "
            "training.",
            more=figures.attention_html(attention_views(f)),
        ),
        section(
            "The gradient and the mutual information",
            "At the start, in the paper's reduced model, minus the gradient of layer 1's attention scores tends in "
            "long contexts to the chi-squared information between positions, put through the softmax; at this length "
            "it follows it, and its largest entries are the edges. The strip shows the same gradient at steps of this "
            "run: an edge that is learned leaves it.",
            "gradient",
            "gradient_matrix",
            "information_matrix",
            wide="gradient_film",
        ),
        section(
            "What each head does",
            "Scores are calibrated: 0 is uniform attention, 1 is perfect; the induction null is what is left of the "
            "score when positions take their parents' tokens from another sequence. Copying is judged where the copies "
            "are read: by the keys of layer 2, or by the logits.",
            "heads",
            more=figures.table_html(
                [head_row(head) for head in f.heads], caption="Head scores, with TransformerLens's raw ones"
            ),
        ),
        section(
            "What breaks when a head is ablated",
            "A bar at 1 means that the whole gain over the best unigram is gone; beyond 1 it is worse than that.",
            "ablation",
            more=figures.table_html(ablation_rows(f), caption="Loss with one head ablated, nats"),
        ),
        section(
            "What breaks when an edge is cut",
            f"Cutting one attention entry at a time, true edges (outlined) are told from all others with AUROC "
            f"{f.auroc():.3f}; in the rows of roots the model may use an entry that is no edge, because a root's token "
            "tells about the kernel too. The query's row, which has no parent, is left blank.",
            "knock_out",
            "adjacency",
        ),
    ]


def evidence_rows(findings: Findings) -> list[dict[str, object]]:
    """The graph by attention alone, and with the test for information, each beside the true one."""
    f = findings
    compared = {
        "attention alone: at least .5 and the largest of its row": f.by_attention,
        f"and information in {N_INFORMATION:,} fresh sequences, without the model": f.recovery,
    }
    return [
        {
            "evidence": evidence,
            "parents found": f"{len(f.context_edges) - len(recovery.missing)} of {len(f.context_edges)}",
            "false edges": ", ".join(f"{parent} -> {child}" for parent, child in recovery.false) or "none",
        }
        for evidence, recovery in compared.items()
    ]


def edge_rows(findings: Findings) -> list[dict[str, object]]:
    """One row for each candidate edge."""
    true = cc.latent_edges(findings.task.graph)
    return [
        {
            "position": c.child,
            "attends to": c.parent,
            "attention": round(c.weight, 3),
            "share of best information": round(c.information_share, 3),
            "p (Holm)": f"{c.p_value:.1e}" if c.p_value > 1e-300 else "< 1e-300",
            "verdict": "edge" if c.accepted else "no edge",
            "truth": "edge" if (c.parent, c.child) in true else "no edge",
            "decided by": c.decided_by,
        }
        for c in findings.found.candidates
    ]


def head_row(head: cc.HeadScores) -> dict[str, object]:
    """One row of the head table."""
    return {
        "head": f"L{head.layer}H{head.head}",
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


def ablation_rows(findings: Findings) -> list[dict[str, object]]:
    """One row for each ablation."""
    return [
        {
            "head": what,
            "method": result.method,
            "loss": round(result.loss, 4),
            "whole model": round(result.baseline_loss, 4),
            "standard error": round(result.standard_error, 4),
            "share of gain lost": f"{share_of_gain(findings, result):.0%}",
        }
        for what, result in findings.ablations
    ]


def edge_facts(findings: Findings) -> dict[tuple[int, int], dict[str, object]]:
    """What the graph tells of each edge, true or found."""
    effect, error = findings.knock_out.effect.amax(dim=0), findings.knock_out.standard_error.amax(dim=0)
    edges = cc.latent_edges(findings.task.graph) | set(findings.recovery.false)
    facts: dict[tuple[int, int], dict[str, object]] = {
        (parent, child): {
            "attention": float(findings.attention[0, :, child, parent].max()),
            "effect of cutting it (nats)": f"{float(effect[child, parent]):.4f} ± {float(error[child, parent]):.4f}",
        }
        for parent, child in sorted(edges)
    }
    for c in findings.found.candidates:
        if (c.parent, c.child) in facts:
            p = f"{c.p_value:.1e}" if c.p_value > 1e-300 else "< 1e-300"
            facts[c.parent, c.child] |= {"information": c.information, "p (Holm)": p}
    return facts


def head_figures(findings: Findings) -> dict[str, Any]:
    """Each head's mean attention: those of layer 1 beside the true graph."""
    f = findings
    drawn = {}
    for head in f.heads:
        pattern, name = f.attention[head.layer, head.head], f"L{head.layer}H{head.head} {head.role}"
        title = f"Attention of {name}, mean over sequences"
        if head.layer == 0:
            drawn[name] = figures.plot_attention_and_graph(pattern, f.task.graph, title=title)
        else:
            drawn[name] = figures.plot_matrix(pattern, title=title, label="attention weight")
    return drawn


def attention_views(findings: Findings) -> list[Any]:
    """A CircuitsVis view of all heads on each example sequence; the first through all of training."""
    f = findings
    roles, graph = [head.role for head in f.heads], f.task.graph
    seen = [f.film, *(cc.sequence_attention(f.model, tokens) for tokens in f.examples.tokens[1:])]
    return [figures.sequence_view(attention, graph, roles=roles) for attention in seen]
