"""What the rows of `discovery_benchmark` add up to; every sentence is made of them, and may come out either way."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from causal_circuits import circuits, figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.discovery_benchmark.measure import PAIRS
from causal_circuits.studies.discovery_benchmark.subjects import BLIND, LOW_LOSS
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import where

Row = Mapping[str, Any]
NAMES = {
    None: "-",
    "zero": "zero",
    "mean": "mean over sequences",
    "resample": "other tokens",
    "permute": "permuted positions",
    "pairs": "other tokens, path of embeddings",
    "loss": "loss",
    "kl_to_model": "KL to the model",
}
ON_TOKENS = ("mean", "resample", "pairs")  # what cannot move attention that depends on positions alone
DRAWN = {  # the file's name: the question, its sentence
    "benchmark": ("zero", "kl_to_model", "an entry is set to zero, and the divergence from the whole model is taken"),
    "benchmark_zero_loss": ("zero", "loss", "an entry is set to zero, and the loss is taken"),
    "benchmark_other_tokens": ("resample", "loss", "an entry gets its weight in a run on other tokens"),
    "benchmark_permuted": ("permute", "kl_to_model", "an entry gets its weight in a run with permuted positions"),
}
SHOWN: tuple[str, ...] = (
    "graph",
    "model",
    "seed",
    "method",
    "counterfactual",
    "metric",
    "auroc",
    "auprc",
    "shd",
    "exact_parent_rate",
)
SHOWN += ("regret", "seconds")


def make_report(rows: Sequence[Row]) -> Report:
    """Checks, results, sections, closing table."""
    seconds = sum(row["unit_cpu_seconds"] for row in one_a_model(rows))
    return Report(
        title="Which methods find the circuit, and by which question?",
        checks=make_checks(rows),
        results=circuits.plain_values({"rows": rows, "timing": {"cpu_s": seconds}}),
        sections=[
            *(plot_question(rows, name) for name in DRAWN),
            Section(
                "Methods, counterfactuals, metrics",
                "Means over graphs and seeds: AUROC, and rows whose parents score highest. Same sequences for all.",
                table=entry_rows(rows),
            ),
            Section(
                "Edges between heads",
                "How much worse a method's circuits are than the best of their size, nats: what is cut reads its mean "
                "over sequences and positions, by the loss, and EAP and EAP-IG compare with that mean; where 'other "
                "tokens' is said, they compare with a run on other tokens, as published.",
                table=regret_rows(rows),
            ),
            Section("The models", " ".join(loss_lines(rows)), table=model_rows(rows)),
            Section(
                "Every number",
                "Regret in nats; seconds are those of scoring all entries.",
                table=[{name: row[name] for name in SHOWN} for row in rows],
            ),
        ],
        summary=summarize(rows, seconds),
    )


def plot_question(rows: Sequence[Row], name: str) -> Section:
    """All methods asked the same question."""
    counterfactual, metric, question = DRAWN[name]
    some = [row for row in rows if (row["counterfactual"], row["metric"]) in ((counterfactual, metric), (None, None))]
    return Section(
        f"{NAMES[counterfactual]}, {NAMES[metric]}",
        f"All methods but attention and random are asked the same: {question}. A dot for each graph and seed, a bar at "
        "the mean; AUROC: the chance that an edge of the latent graph scores above another entry; below: in how many "
        "rows the parents score highest.",
        figures={name: figures.plot_benchmark(some, ("auroc", "exact_parent_rate"))} if some else {},
    )


def one_a_model(rows: Sequence[Row]) -> list[Row]:
    """The first row of every model."""
    return list({(row["graph"], row["model"], row["seed"]): row for row in reversed(rows)}.values())[::-1]


def asked(rows: Sequence[Row]) -> list[tuple[str, str | None, str | None]]:
    """Every method with each of its questions, in order."""
    return list(dict.fromkeys((row["method"], row["counterfactual"], row["metric"]) for row in rows))


def entry_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each method and question: AUROC and exact parents of every kind of model."""
    lines = []
    for method, counterfactual, metric in asked(rows):
        line: dict[str, Any] = {
            "method": method,
            "in place of an entry": NAMES[counterfactual],
            "metric": NAMES[metric],
        }
        for kind in kinds(rows):
            some = where(rows, method=method, counterfactual=counterfactual, metric=metric, model=kind)
            line[f"{kind}: AUROC"] = round(fmean(row["auroc"] for row in some), 3)
            line[f"{kind}: exact parents"] = f"{fmean(row['exact_parent_rate'] for row in some):.0%}"
        lines.append(line)
    return lines


def regret_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each method that was asked of edges between heads: mean regret of every kind of model."""
    lines = []
    for method, counterfactual, metric in asked(rows):
        some = where(rows, method=method, counterfactual=counterfactual, metric=metric)
        if any(row["regret"] is None for row in some):
            continue
        name = f"{method}, other tokens" if (counterfactual, metric) == PAIRS else method
        lines.append(
            {"method": name} | {k: round(fmean(r["regret"] for r in where(some, model=k)), 3) for k in kinds(rows)}
        )
    return lines


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of model, in order."""
    return list(dict.fromkeys(row["model"] for row in rows))


def model_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each model: how it came about, its loss, its attention, its parents by exact knock-out."""
    return [
        {
            "graph": row["graph"],
            "model": row["model"],
            "seed": row["seed"],
            "recipe": row["recipe"].replace("_", " "),
            "loss above edge posterior (nats)": round(row["excess_over_edge_posterior"], 4),
            "attention to parents": round(row["attention_to_parents"], 3),
            f"loss < +{LOW_LOSS}, attention < {BLIND}": {None: "", True: "yes", False: "no"}[row["is_decoy"]],
            "exact parents (exact, zero, KL)": "".join(f"{rate:.0%}" for rate in rates_of(rows, row)),
        }
        for row in one_a_model(rows)
    ]


def rates_of(rows: Sequence[Row], model: Row) -> list[float]:
    """The model's exact parent rate by exact knock-out against zero and by the divergence; none if it was not asked."""
    same = {name: model[name] for name in ("graph", "model", "seed")}
    return [
        row["exact_parent_rate"]
        for row in where(rows, method="exact", counterfactual="zero", metric="kl_to_model", **same)
    ]


def loss_lines(rows: Sequence[Row]) -> list[str]:
    """What the losses say of models of the same graph and seed, on the same test sequences."""
    models = one_a_model(rows)
    trained = {(row["graph"], row["seed"]): row["loss"] for row in where(models, model="trained")}
    lines = []
    for kind in ("adam", "decoy"):
        some = [row for row in where(models, model=kind) if (row["graph"], row["seed"]) in trained]
        if not some:
            continue
        excess = [row["loss"] - trained[row["graph"], row["seed"]] for row in some]
        low, blind = sum(r["excess_over_edge_posterior"] <= LOW_LOSS for r in some), sum(r["is_decoy"] for r in some)
        lines.append(
            f"{kind}: {len(some)} models, none left out; their loss is {min(excess):+.3f} to {max(excess):+.3f} nats "
            f"from the trained model's, which is lower in {sum(e > 0 for e in excess)}; {low} are within {LOW_LOSS} "
            f"nats of the edge posterior, {blind} of them with attention to the parents below {BLIND}."
        )
    return lines


def make_checks(rows: Sequence[Row]) -> list[Check]:
    """What the rows say of planted models, of questions, and of models that predict without the graph."""
    checks = []
    planted = where(rows, model="planted")
    forests = [row for row in planted if row["graph"] != "two-parent"]
    several = [row for row in planted if row["graph"] == "two-parent"]
    for method, claim in (
        ("exact", "Exact knock-out (zero, divergence) puts every planted edge first"),
        ("eap_ig", "Integrated gradients, asked the same (zero, divergence), put every edge of planted forests first"),
    ):
        same = where(
            planted if method == "exact" else forests, method=method, counterfactual="zero", metric="kl_to_model"
        )
        if same:
            least = min(row["auroc"] for row in same)
            other = [row["auroc"] for row in where(several, method=method, counterfactual="zero", metric="kl_to_model")]
            more = f"; with two parents {min(other):.3f}" if other else ""
            checks.append(Check(least == 1.0, claim, f"AUROC {least:.3f} at least{more}"))
    blind = [row for row in planted if row["counterfactual"] in ON_TOKENS]
    if blind:
        least, most = min(row["auroc"] for row in blind), max(row["auroc"] for row in blind)
        names = ", ".join(sorted({row["method"] for row in blind}))
        checks.append(
            Check(
                least == most == 0.5,
                "Against other tokens, or the mean over sequences, no method sees planted attention between positions",
                f"AUROC {least:.3f} to {most:.3f} ({names})",
            )
        )
    models = one_a_model(planted)
    if models:
        found = sum(row["optimum_found"] for row in models)
        checks.append(
            Check(
                found == len(models),
                "On planted circuits the best of all circuits is the planted one, edge for edge",
                f"by the divergence from the whole model, on {found} of {len(models)}",
            )
        )
    return [*checks, *decoy_check(rows)]


def decoy_check(rows: Sequence[Row]) -> list[Check]:
    """Whether exact knock-out separates trained models from decoys, all of them counted."""
    cut = where(rows, method="exact", counterfactual="zero", metric="kl_to_model")
    rates = {
        kind: [row["exact_parent_rate"] for row in where(cut, model=kind)] for kind in ("trained", "decoy", "adam")
    }
    if not (rates["trained"] and rates["decoy"]):
        return []
    adam = f"; Adam from zero: {min(rates['adam']):.0%} to {max(rates['adam']):.0%}" if rates["adam"] else ""
    return [
        Check(
            min(rates["trained"]) > max(rates["decoy"]),
            "Exact knock-out tells models trained by the recipe from those that began with the graph in other rows",
            f"parents are the entries that cost most in {min(rates['trained']):.0%} of rows or more (trained), "
            f"{max(rates['decoy']):.0%} or less (all {len(rates['decoy'])} decoys, none selected){adam}",
        )
    ]


def summarize(rows: Sequence[Row], seconds: float) -> list[tuple[str, str]]:
    """Means over graphs and seeds, a line for each method and question; then regrets and losses."""
    names = kinds(rows)
    head = f"{'in place of an entry':33s} {'metric':16s}" + "".join(f"{kind:>14s}" for kind in names)
    lines = [("method", f"{'':21s} {head} (AUROC, rows with exact parents)")]
    for line in entry_rows(rows):
        shown = (f"{line[f'{kind}: AUROC']:8.3f} {line[f'{kind}: exact parents']:>5s}" for kind in names)
        about = f"{line['method']:21s} {line['in place of an entry']:33s} {line['metric']:16s}"
        lines.append(("edges", about + "".join(shown)))
    for line in regret_rows(rows):
        lines.append(("regret", f"{line['method']:72s}" + "".join(f"{line[kind]:14.3f}" for kind in names)))
    for kind in names:
        excess = [row["excess_over_edge_posterior"] for row in one_a_model(rows) if row["model"] == kind]
        lines.append((kind, f"test loss {min(excess):+.4f} to {max(excess):+.4f} nats from the edge posterior"))
    lines += [("losses", line) for line in loss_lines(rows)]
    return [*lines, ("time", f"{seconds:.0f} CPU seconds for {len(one_a_model(rows))} models")]
