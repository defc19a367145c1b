"""The figures and the page of `circuit_proof.py`, in the order in which a doubter would ask.

Not a script. Every section says in one sentence what its picture shows.
"""

from pathlib import Path

from prove_one import Evidence, onset_intervals
from results_file import versions

from causal_circuits import figures


def write_page(evidence: Evidence, command: str, out: Path) -> None:
    """Save every figure and write the page."""
    e, folder = evidence, out / "figures"
    for name, figure in draw_figures(e).items():
        figures.save_figure(figure, folder / name)
    figures.write_report(
        out / "report.html",
        title=f"Which circuit is this, and is it one? ({e.task.graph.graph.get('name', 'forest')})",
        verdict=verdict(e),
        sections=sections(e, folder, command),
        meta={"task": repr(e.task), "command": command, "wall time": f"{e.seconds:.1f} s", **versions()},
    )


def draw_figures(evidence: Evidence) -> dict[str, object]:
    """Every figure by the name of its file."""
    e, graph = evidence, evidence.task.graph
    effect = e.knock_out.effect.amax(dim=0).clone()
    if e.task.has_query:
        effect[-1] = float("nan")  # the query's row has no parent, and its effects would drown the others' colours
    drawn = {
        "circuit": figures.plot_circuit(
            e.whole.graph, e.whole.mask(e.proof.circuit), effects={edge.edge: edge.effect for edge in e.proof.edges}
        ),
        "frontier": figures.plot_frontier(e.frontier, e.rankings),
        "needed_edges": figures.plot_needed_edges(e.proof),
        "knock_out": figures.plot_matrix(
            effect,
            graph,
            title="Loss when one entry of layer 1 is cut",
            label="nats above the whole model",
            diverging=True,
        ),
        "attention": figures.plot_attention_and_graph(e.knock_out.attention.amax(dim=0), graph),
    }
    if e.formations:
        drawn["formation"] = figures.plot_formation(e.formations[0])
        drawn["onsets"] = figures.plot_onsets(e.formations)
    return drawn


def verdict(evidence: Evidence) -> list[figures.Check]:
    """The claims, each with the number that decides it."""
    e, scores, both = evidence, evidence.graph_scores, evidence.hypothesis
    claims = {
        "faithful": "The circuit's mean loss is that of the whole model",
        "complete": "Under random knock-outs circuit and whole model lose alike",
        "minimal": "Every edge of the circuit is needed",
        "sufficient": "The circuit is better than others of its size",
    }
    return [
        figures.Check(
            all(check.passed for check in e.checks),
            "The tools obey their own laws on this model",
            "; ".join(f"{check.law}: off by {check.error:.1e}" for check in e.checks),
        ),
        *(figures.Check(c.passed, claims[c.name], c.reason) for c in e.proof.criteria),
        figures.Check(
            e.encodes_graph,
            "In nine rows with parents of ten the parents are the entries that matter most",
            f"cut one by one, the parents are the entries that cost most in {scores.exact_parent_rate:.0%} of the rows "
            f"with parents; AUROC {scores.auroc:.3f}",
        ),
        figures.Check(
            both.recovered >= 0.9,
            "Causal scrubbing leaves the paper's hypothesis standing: where a position has parents, head 0.h copies "
            "parent h and head 1.0 matches it with the query",
            f"it keeps {both.recovered:.3f} of the loss that free resampling there destroys (0.9 passes); a model that "
            f"used nothing else would also keep it with all the rest resampled: this one keeps "
            f"{e.nothing_else.recovered:.3f}",
        ),
    ]


def sections(evidence: Evidence, folder: Path, command: str) -> list[figures.Section]:
    """The evidence, picture by picture."""
    e = evidence

    def section(title: str, sentence: str, *names: str, more: str = "") -> figures.Section:
        shown = [figures.figure_html(folder / name, alt=f"{title}: {sentence}") for name in names]
        return figures.Section(title, sentence, "".join(shown) + more, command)

    found = [
        section(
            "The circuit",
            f"The smallest circuit that keeps 99% of what the best of {e.frontier.n_circuits:,} circuits gains: "
            f"{len(e.proof.circuit)} of {len(e.whole)} edges. The number on an edge is what the circuit loses without "
            "it, nats.",
            "circuit",
        ),
        section(
            "Each edge's worth",
            "Each edge cut alone, on sequences that the search has not seen; filled dots pass Holm's correction.",
            "needed_edges",
        ),
        section(
            "The best circuits, and what the methods find",
            "The thick line is the least cost of any circuit with so many edges; the other lines take a method's "
            "highest-scoring edges, so the gap is its regret. All methods are asked by the loss; an edge that is cut "
            "reads its mean, an entry that is cut is set to zero, and gradients compare with the same.",
            "frontier",
            more=figures.table_html(method_rows(e), caption="Seven methods against the frontier and against the graph"),
        ),
        section(
            "The entries that matter, and the graph",
            "Layer 1's attention, and what cutting each entry costs; true edges are outlined. A model that predicts by "
            "other means has a low loss and no match here.",
            "attention",
            "knock_out",
        ),
        section(
            "Causal scrubbing",
            "Everything that the paper's hypothesis calls irrelevant is resampled; what remains of the loss is the "
            "hypothesis's share. 'children' holds it to positions with parents, of which the paper speaks. "
            "'everywhere' also resamples roots, the query's row and the path past layer 1: what is lost only there is "
            "what the model uses besides the circuit (a root's token, too, tells about the kernel).",
            more=figures.table_html(scrub_rows(e), caption="Loss with only the hypothesis kept, nats"),
        ),
    ]
    if e.formations:
        found.append(
            section(
                "When each edge began to matter",
                "Attention on each edge; its share of the effects of all entries of its row, each cut alone; and that "
                f"effect itself, at {len(e.formations[0].steps)} steps. Dotted lines mark onsets: the first step from "
                "which an edge stays half-way from its first to its last value. Below, the onsets in "
                f"{len(e.formations)} runs with other data. {pull_sentence(e)}",
                "formation",
                "onsets",
                more=figures.table_html(
                    onset_rows(e), caption="Median onset over edges, in steps; mean and 95% over seeds"
                ),
            )
        )
    return found


def pull_sentence(evidence: Evidence) -> str:
    """What the edges' information, and its pull through the softmax of a row, say of the order of onsets."""
    information = evidence.formations[0].information
    orders = [f.order_by_pull for f in evidence.formations if f.order_by_pull == f.order_by_pull]
    found = f"{min(orders):.2f} to {max(orders):.2f} over these runs" if orders else "not defined here"
    return (
        f"The edges' information is {float(information.min()):.3f} to {float(information.max()):.3f}; Spearman's rank "
        f"correlation of its pull, through the softmax of a row, with earliness is {found}."
    )


def method_rows(evidence: Evidence) -> list[dict[str, object]]:
    """One row for each method."""
    return [
        {
            "method": ranking.method,
            "mean regret (nats)": ranking.mean_regret,
            "CPR": ranking.cpr,
            "CMD": ranking.cmd,
            "AUROC": scores.auroc,
            "AUPRC": scores.auprc,
            "structural Hamming distance": scores.shd,
            "exact parents": f"{scores.exact_parent_rate:.0%}",
            "seconds": found.seconds,
        }
        for ranking, (found, scores) in zip(evidence.rankings, evidence.entries, strict=True)
    ]


def onset_rows(evidence: Evidence) -> list[dict[str, object]]:
    """One row for each clock."""
    return [
        {
            "clock": name.replace("_", " "),
            "mean": round(found.mean, 1),
            "from": round(found.low, 1),
            "to": round(found.high, 1),
            "edges without an onset": f"{found.never:.0%}",
        }
        for name, found in onset_intervals(evidence.formations).items()
    ]


def scrub_rows(evidence: Evidence) -> list[dict[str, object]]:
    """One row for each claim."""
    return [
        {
            "claim": scrubbed.claim,
            "where": scrubbed.where,
            "loss": scrubbed.loss,
            "whole model": scrubbed.baseline_loss,
            "free resampling": scrubbed.random_loss,
            "share kept": round(scrubbed.recovered, 3),
        }
        for scrubbed in evidence.scrubbed
    ]
