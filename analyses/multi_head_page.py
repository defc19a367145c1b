"""What `multi_head.py` leaves behind: the table, results.json, the figures and the page.

Not a script.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from going_on import Units
from multi_head_findings import MultiHeadFindings
from results_file import result_header, versions, write_results

import causal_circuits as cc
from causal_circuits import figures

MARGIN = 0.05  # nats


def results(f: MultiHeadFindings, header: dict[str, Any]) -> dict[str, object]:
    """Every number of the table and of the page, as JSON values."""
    more = {"n_ctx": f.task.n_ctx, "n_heads": list(f.n_heads), "training": f.record.config}
    return {
        **header,
        "config": {**header["config"], **more},
        "loss": {
            "test": f.test_loss,
            "excess_over_edge_posterior": f.excess,
            **asdict(f.references),
            "parents_known": {name_of(which): loss for which, loss in f.partial.items()},
        },
        "graph": {
            "parents": parents_lists(f.task.graph),
            "found_parents": parents_lists(f.found),
            "edges": len(f.edges),
            "recovered": len(f.recovered),
            "exact": len(f.recovered) == len(f.edges) and not f.false,
            "false_edges": len(f.false),
            "head_of_edge": {f"{p}->{c}": list(f.found.carriers(p, c)) for p, c in sorted(f.found.edges)},
            "missing": [asdict(edge) for edge in f.missing],
            "candidates": [asdict(candidate) for candidate in f.found.candidates],
        },
        "heads": [asdict(head) for head in f.found.heads],
        "further_parents": [asdict(further) for further in f.found.further_parents],
        "turns": [{"head": t.head, "last_key": t.last_key, "support": t.support.tolist()} for t in f.turns],
        "information": information_rows(f),
        "knock_out": knock_out_rows(f),
        "ablation": [
            {
                "head": head_name(r.heads),
                "loss": r.loss,
                "baseline": r.baseline_loss,
                "standard_error": r.standard_error,
            }
            for r in f.ablations
        ],
        "single_head": {
            "test_loss": f.single_loss,
            "excess_over_edge_posterior": f.single_loss - f.references.edge_posterior,
            "repeats": [asdict(repeat) for repeat in f.repeats],
            "heads": [asdict(head) for head in f.single.heads],
            "further_parents": [asdict(further) for further in f.single.further_parents],
            "given": f.single_turn.last_key,
            "gain_alone": {str(t): float(f.single_turn.support[t]) for t in f.task.target_parents},
        },
        "timing": {
            "wall_s": f.seconds,
            "train_s": f.record.seconds,
            "steps": f.config.steps,
            "train_sequences_per_s": f.record.sequences_per_s,
            "path": f.record.path,
        },
    }


def parents_lists(graph: Any) -> list[list[int]]:
    """The parents of every position and, last, of the target."""
    return [list(cc.parents_of(graph, node)) for node in sorted(graph.nodes)]


def name_of(which: tuple[int, ...]) -> str:
    """A set of parent numbers in words, counted from 1."""
    return "no parent" if not which else "parent " + " + ".join(str(number + 1) for number in which)


def head_name(heads: Any) -> str:
    """L0H1 of ((0, 1),)."""
    return ", ".join(f"L{layer}H{head}" for layer, head in heads)


def information_rows(f: MultiHeadFindings) -> list[dict[str, object]]:
    """For each parent number, the mean lift over its edges: alone, and given the others."""
    rows = []
    for number, t in enumerate(f.task.target_parents):
        edges = [
            (child, cc.parents_of(f.task.graph, child)[number])
            for child in range(f.task.n_ctx - 1)
            if f.task.graph.in_degree(child) == len(f.task.target_parents)
        ]
        alone = [float(f.alone.value[child, parent, t]) for child, parent in edges]
        given = [float(f.given[number].value[child, parent, t]) for child, parent in edges]
        rows.append(
            {
                "parent number": number + 1,
                "of the target": t,
                "edges": len(edges),
                "lift alone": fmean(alone) if alone else float("nan"),
                "lift given the others": fmean(given) if given else float("nan"),
            }
        )
    return rows


def knock_out_rows(f: MultiHeadFindings) -> list[dict[str, object]]:
    """For each head: what cutting its own edges costs, and what cutting any other entry does."""
    rows, last = [], f.task.n_ctx - 1
    for report in f.found.heads:
        effect = f.knock_out.effect[report.head]
        own = {(min(child, last), parent) for parent, child in report.edges}
        cut = [float(effect[cell]) for cell in own]
        cells = [(i, j) for i in range(last + 1) for j in range(i + 1) if (i, j) not in own]
        others = [float(effect[cell].nan_to_num(0.0)) for cell in cells]  # entries hardly in use were not cut
        rows.append(
            {
                "head": f"L0H{report.head}",
                "role": report.role,
                "edges": len(own),
                "effect of its edges": fmean(cut) if cut else float("nan"),
                "smallest": min(cut, default=float("nan")),
                "effect of other entries": fmean(others),
                "AUROC, own edges": auroc(cut, others),
            }
        )
    return rows


def auroc(above: list[float], below: list[float]) -> float:
    """The probability that one of `above` exceeds one of `below`, ties half; NaN without a pair."""
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    return fmean(pairs) if pairs else float("nan")


def table(f: MultiHeadFindings, out: Path) -> str:
    """The short table that ends a run."""
    lines = [
        f"graph       {len(f.recovered)} of {len(f.edges)} edges found, {len(f.false)} false; "
        f"{len(f.missing)} missing, {sum(edge.explained for edge in f.missing)} of them explained",
        f"loss        {f.test_loss:.4f} = edge posterior {f.references.edge_posterior:.4f} {f.excess:+.4f} nats",
        "lines       " + ", ".join(f"{name_of(which)} {loss:.4f}" for which, loss in f.partial.items()),
    ]
    for row in knock_out_rows(f):
        lines.append(
            f"head {row['head']}   {row['role']}; cutting one of its edges costs "
            f"{row['effect of its edges']:.4f} nats, "
            f"another entry {row['effect of other entries']:.4f} (AUROC {row['AUROC, own edges']:.3f})"
        )
    lines += [f"missing     {edge.parent} -> {edge.child}: {edge.reason}" for edge in f.missing[:6]]
    if len(f.missing) > 6:
        lines.append(f"missing     and {len(f.missing) - 6} more, in results.json")
    lines += [f"no head     {sentence}" for sentence in further_sentences(f.found)]
    lines += [
        "seeds       "
        + "; ".join(
            f"{r.seed}: excess {r.excess:+.4f} with {f.n_heads[0]} heads, {r.single_excess:+.4f} with one"
            for r in f.repeats
        ),
        f"one head    excess {f.single_loss - f.references.edge_posterior:+.4f} nats; "
        + "; ".join(head.role for head in f.single.heads)
        + "".join(f"; {sentence}" for sentence in further_sentences(f.single))
        + f"; why: {why_one_parent(f)}",
        f"time        {f.seconds:.1f} s; training {f.record.seconds:.1f} s in all "
        f"({f.record.sequences_per_s:,.0f} sequences/s, {f.record.path} path)",
        f"look at     {out / 'report.html'}",
    ]
    return "\n".join(lines)


def further_sentences(graph: Any) -> list[str]:
    """What the data show and no head carries."""
    return [
        f"position {further.last_key} is another parent of the target, with parents in {len(further.edges)} rows, "
        f"that no head carries (its rows tell {further.share:.1f} times as much with it)"
        for further in graph.further_parents
    ]


def why_one_parent(f: MultiHeadFindings) -> str:
    """Which parent of the target a single head took, and what the others would have gained it."""
    support = f.single_turn.support
    gains = ", ".join(f"{float(support[t]):.2f} for {t}" for t in f.task.target_parents)
    given = f.single_turn.last_key
    return (
        "nothing was worth its turn"
        if given is None
        else f"one copy at the query holds one token; it was given position {given}, which alone gains most ({gains})"
    )


def draw_figures(f: MultiHeadFindings) -> dict[str, Any]:
    """Every figure by the name of its file."""
    graph = f.task.graph
    lines = {name_of(which): loss for which, loss in f.partial.items() if len(which) < len(f.task.target_parents)}
    if len(lines) > 5:  # by number only: the best of every size
        sizes = range(len(f.task.target_parents))
        best = [min((w for w in f.partial if len(w) == size), key=lambda w: f.partial[w]) for size in sizes]
        lines = {name_of(which): f.partial[which] for which in best}
    lines |= {"edge posterior": f.references.edge_posterior, "entropy": f.references.entropy}
    drawn: dict[str, Any] = {
        "loss": figures.plot_loss(f.record, lines, test_loss=f.test_loss),
        "graph": figures.plot_graph_comparison(graph, f.found),
    }
    for report in f.found.heads:
        name = f"L0H{report.head}"
        drawn[f"attention_{name}"] = figures.plot_attention_and_graph(
            f.attention[0, report.head], graph, title=f"{name} {report.role}"
        )
        effect = f.knock_out.effect[report.head].clone()
        effect[-1] = float("nan")  # the target's row serves every prediction: it would drown the others' colours
        drawn[f"knock_out_{name}"] = figures.plot_matrix(
            effect,
            graph,
            title=f"Loss when one entry of {name} is cut",
            label="nats above the whole model",
            diverging=True,
        )
    for turn in f.turns:
        drawn[f"turn_L0H{turn.head}"] = figures.plot_matrix(
            turn.gain,
            graph,
            title=f"Turn of L0H{turn.head}: gain with its last row on {turn.last_key}",
            label="nats a unit of score",
            diverging=True,
        )
    return drawn


def write(f: MultiHeadFindings, arguments: argparse.Namespace, units: Units) -> None:
    """Model, record, figures, report and, last, results.json, which ends the need for checkpoints."""
    out, header = arguments.out, result_header(units.program, arguments)
    command = str(header["command"])
    cc.save_model(f.model, out / "model")
    f.record.save(out / "record")
    for name, figure in draw_figures(f).items():
        figures.save_figure(figure, out / "figures" / name)
    content = results(f, header)
    figures.write_report(
        out / "report.html",
        title=f"Did these heads share the graph? ({f.task.graph.graph.get('name', 'DAG')})",
        verdict=verdict(f),
        sections=sections(f, out / "figures", command),
        meta={
            "task": repr(f.task),
            "heads": str(f.n_heads),
            "command": command,
            "seed": str(f.seed),
            "wall time": f"{f.seconds:.1f} s",
            **{name: str(number) for name, number in versions().items()},
        },
    )
    write_results(content, out)
    units.finish()


def verdict(f: MultiHeadFindings) -> list[figures.Check]:
    """The claims, each with the number that decides it."""
    unlearned = [edge for edge in f.missing if not edge.explained]
    needed = [row for row in f.ablations if row.heads[0][0] == 0]
    on_duty = [head for head in f.found.heads if head.edges]
    return [
        figures.Check(
            not f.false and not unlearned,
            "The union of what the heads carry is the true graph, but for edges that tell nothing or are of no use",
            f"{len(f.recovered)} of {len(f.edges)} edges, {len(f.false)} false, {len(f.missing)} missing, "
            f"{len(unlearned)} of them without a reason",
        ),
        figures.Check(
            f.excess <= MARGIN,
            f"It predicts about as well as the posterior that knows the edges (within {MARGIN} nats)",
            f"test loss {f.test_loss:.4f}, edge posterior {f.references.edge_posterior:.4f}, excess {f.excess:+.4f}",
        ),
        figures.Check(
            {head.last_key for head in on_duty} == set(f.task.target_parents),
            "Heads are read without the graph, and agree with it: each parent of the target has a head of its own",
            "; ".join(f"L0H{head.head} {head.role}" for head in f.found.heads),
        ),
        figures.Check(
            all(row.loss - row.baseline_loss > 0.05 for row in needed if row.heads[0][1] in {h.head for h in on_duty}),
            "Each of these heads is needed: without it (its output averaged) the loss rises by 0.05 nats or more",
            "; ".join(f"{head_name(r.heads)} {r.loss - r.baseline_loss:+.4f}" for r in needed),
        ),
        figures.Check(
            all(row["AUROC, own edges"] > 0.9 for row in knock_out_rows(f) if row["edges"]),
            "Cutting attention entries one by one, in each head it is its own edges that hurt",
            "; ".join(f"{row['head']} AUROC {row['AUROC, own edges']:.3f}" for row in knock_out_rows(f)),
        ),
        figures.Check(
            all(repeat.excess <= MARGIN < repeat.single_excess - repeat.excess for repeat in f.repeats),
            f"From each of {len(f.repeats)} seeds, {f.n_heads[0]} heads come within {MARGIN} nats of that posterior, "
            f"and a single head, trained for as many steps, stays more than {MARGIN} nats above them",
            "; ".join(f"seed {r.seed}: {r.excess:+.4f} and {r.single_excess:+.4f}" for r in f.repeats),
        ),
    ]


def sections(f: MultiHeadFindings, folder: Path, command: str) -> list[figures.Section]:
    """The evidence, picture by picture."""

    def section(title: str, sentence: str, *names: str, more: str = "") -> figures.Section:
        shown = [figures.figure_html(folder / name, alt=f"{title}: {sentence}") for name in names]
        return figures.Section(title, sentence, f'<div class="side-by-side">{"".join(shown)}</div>{more}', command)

    heads = [f"L0H{head.head}" for head in f.found.heads]
    caption = "True edges that no head carries, and why"
    missing = figures.table_html([asdict(edge) for edge in f.missing], caption=caption) if f.missing else ""
    return [
        section(
            "The heads side by side",
            "Each head attends from a child to one of its parents; open squares are the true edges, and the last row "
            "stands for the target.",
            *(f"attention_{name}" for name in heads),
        ),
        section(
            "The union graph",
            f"{len(f.recovered)} of {len(f.edges)} edges were found and {len(f.false)} false ones drawn. Where several "
            "choices of keys single out the same sequences, the one that can be parents is named.",
            "graph",
            more=missing + figures.table_html(edge_rows(f), caption="Every edge found, and who carries it"),
        ),
        section(
            "The loss through the plateaus",
            "The loss falls from line to line as heads come on duty: each line is the best that can be predicted with "
            "these parents known and the others not.",
            "loss",
        ),
        section(
            "What each head was given in its turn",
            "Minus the mixed second derivative of the loss: what it gains where the head attends from child to parent, "
            "given what the heads before it carry. The first head sees one parent's information alone, the next "
            "what is left.",
            *(f"turn_{name}" for name in heads),
            more=figures.table_html(
                information_rows(f),
                caption="Lift of the target probability of a child's token when one more parent matches: alone, and "
                "given all other parents",
            ),
        ),
        section(
            "What breaks when an entry is cut",
            "Cutting one attention entry of one head at a time; its own edges are what hurts. Entries of less than 1% "
            "of their row's attention were not cut; the last row, which every prediction needs, is in the table only.",
            *(f"knock_out_{name}" for name in heads),
            more=figures.table_html(knock_out_rows(f), caption="Per-head, per-edge knock-out, nats"),
        ),
        section(
            "The same task with a single head",
            f"One head stops {f.single_loss - f.references.edge_posterior:+.4f} nats above the edge posterior: "
            + "; ".join(head.role for head in f.single.heads)
            + ". "
            + " ".join(f"{sentence}." for sentence in further_sentences(f.single))
            + f" Why: {why_one_parent(f)}.",
        ),
    ]


def edge_rows(f: MultiHeadFindings) -> list[dict[str, object]]:
    """One row for each edge found."""
    said = {(c.parent, c.child): c.reason for c in f.found.candidates if c.accepted}
    return [
        {
            "parent": parent,
            "child": "target" if child == f.task.n_ctx else child,
            "heads": ", ".join(f"L0H{head}" for head in f.found.carriers(parent, child)),
            "attention": round(facts["weight"], 3),
            "lift": round(facts["information"], 3),
            "share of a child": round(facts["information_share"], 2),
            "p (Holm)": f"{facts['p_value']:.1e}" if facts["p_value"] > 1e-300 else "< 1e-300",
            "how": said[parent, child],
            "truth": "edge" if f.task.graph.has_edge(parent, child) else "no edge",
        }
        for parent, child, facts in sorted(f.found.edges(data=True), key=lambda edge: (edge[1], edge[0]))
    ]
