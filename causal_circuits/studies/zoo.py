"""A zoo: models whose truth is known, as files, and one function that scores any discovery method on them."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

import causal_circuits as cc
from causal_circuits import circuits, figures
from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer
from causal_circuits.models.decoy import carriers
from causal_circuits.pages import Check, Section
from causal_circuits.statistics import auroc, rank_correlation
from causal_circuits.storage import read_json, read_tensors, tensor_bytes, write_files
from causal_circuits.studies.discovery_benchmark.subjects import GRAPHS, Subject, make_graph, make_subject
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of

MODELS = ("planted", "decoy", "trained", "trained-decoy")
Method = Callable[[HookedTransformer, cc.Batch], Tensor]
CARD = """# A zoo of transformers with known truth

Made by `{command}`. Two-layer disentangled transformers (HookedTransformers) for in-context tasks with a latent causal
graph. A folder a model:

* `model.safetensors`, `model.json`: `causal_circuits.load_model(folder)`.
* `truth.json`: `parents` of the latent graph, `d_vocab`, `n_ctx`, `alpha` (the task), `kind`, `recipe`, `losses` in
  nats, `used`: the entries [query, key] of layer 0 that were written in by hand (null: the model was trained), and
  `circuit`: the edges between heads that were (null likewise).
* `truth.safetensors`: `knock_out` [head, query, key], nats: how far the prediction moves when an entry is set to zero.

*planted*: the graph's circuit, by hand. *decoy*: predicts by other entries, by hand. *trained*: from a warm start.
*trained-decoy*: a decoy, trained on.

## Score a method

    from causal_circuits.studies import zoo

    def attention(model, batch):  # a model and a batch in; scores of layer 0's entries out, [(head,) query, key]
        return model.run_with_cache(batch.tokens)[1]["pattern", 0].mean(dim=0)

    zoo.score_method(attention, zoo.load_zoo("{folder}"))

A line a model: `auroc_graph` (the latent graph's entries above others; near .5 is right for a decoy), `auroc_used` (the
entries written in above others; 1 is right for planted models and decoys alike), `rank_knock_out` (rank correlation
with the effect of cutting single entries).
"""


@dataclass(frozen=True)
class ZooModel:
    """A model with what is known of it.

    Attributes:
        name: of its folder.
        model: the transformer.
        task: what it predicts; `task.graph` is the latent graph.
        about: kind, graph, seed, recipe, losses.
        used: [query, key], the entries of layer 0 written in by hand; None for a trained model.
        circuit: edges (sender, reader) between heads written in by hand; None for a trained model.
        knock_out: [head, query, key], KL in nats from the whole model to the one with an entry at zero.
    """

    name: str
    model: HookedTransformer
    task: cc.InContextTask
    about: Mapping[str, Any]
    used: Tensor | None
    circuit: list[tuple[str, str]] | None
    knock_out: Tensor

    def __repr__(self) -> str:
        return f"ZooModel({self.name})"

    def save(self, folder: Path) -> None:
        cc.save_model(self.model, folder)
        truth = {
            **self.about,
            **{name: getattr(self.task, name) for name in ("d_vocab", "n_ctx", "alpha")},
            "parents": cc.graphs.graph_parents(self.task.graph),
            "used": None if self.used is None else self.used.nonzero().tolist(),
            "circuit": self.circuit,
        }
        tensors = tensor_bytes({"knock_out": self.knock_out})
        write_files(folder, {"truth.json": json.dumps(truth, indent=1) + "\n", "truth.safetensors": tensors})


@check_arguments
def load_zoo(folder: str | os.PathLike[str]) -> list[ZooModel]:
    """The models that the study wrote, in the order of their names.

    Raises:
        ValueError: the folder holds none.

    >>> with TemporaryDirectory() as folder:
    ...     model = cc.studies.zoo.measure("chain", "planted", 0, d_vocab=2, n_ctx=6, alpha=0.1, steps=2)
    ...     model.save(Path(folder) / "a")
    ...     cc.studies.zoo.load_zoo(folder)[0].about["kind"]
    'planted'
    """
    found = [_load(path.parent) for path in sorted(Path(folder).glob("*/truth.json"))]
    if not found:
        raise ValueError(f"a zoo is a folder of folders with truth.json: {folder} has none; run analyses/zoo.py")
    return found


def _load(folder: Path) -> ZooModel:
    truth = read_json(folder / "truth.json")
    task = cc.InContextTask(cc.graph_from_parents(truth.pop("parents")), truth.pop("d_vocab"), truth.pop("alpha"))
    used, circuit, n_ctx = truth.pop("used"), truth.pop("circuit"), truth.pop("n_ctx")
    entries = None if used is None else torch.zeros(n_ctx, n_ctx, dtype=torch.bool)
    if entries is not None:
        entries[tuple(torch.tensor(used).T)] = True
    return ZooModel(
        name=folder.name,
        model=cc.load_model(folder),
        task=task,
        about=truth,
        used=entries,
        circuit=None if circuit is None else [(sender, reader) for sender, reader in circuit],
        knock_out=read_tensors(folder / "truth.safetensors")["knock_out"],
    )


@check_arguments
def score_method(method: Method, models: Iterable[ZooModel], *, sequences: int = 512, seed: int = 0) -> pd.DataFrame:
    """Score a discovery method on models with known truth, a line a model.

    Args:
        method: (model, batch) -> scores of layer 0's entries, [head, query, key] (the largest over heads counts) or
            [query, key]; higher means used.
        models: of `load_zoo`.
        sequences: in the batch, drawn from the model's own task.
        seed: of these sequences.

    Returns:
        Columns `model`, `kind`, `auroc_graph`, `auroc_used` (NaN for trained models) and `rank_knock_out`; all over
        the causal entries less the row of the query, which no edge constrains.

    Raises:
        ValueError: scores of another shape, or NaN among them.

    >>> sizes = {"d_vocab": 2, "n_ctx": 8, "alpha": 0.1, "steps": 2}
    >>> models = [cc.studies.zoo.measure("pairs", kind, 0, **sizes) for kind in ("planted", "decoy")]
    >>> table = cc.studies.zoo.score_method(cc.studies.zoo.knock_out, models, sequences=64)
    >>> table.auroc_used.tolist(), bool(table.auroc_graph[0] > table.auroc_graph[1])
    ([1.0, 1.0], True)
    """
    return pd.DataFrame([_score(method, one, sequences, seed) for one in models])


def _score(method: Method, one: ZooModel, sequences: int, seed: int) -> dict[str, Any]:
    found = method(one.model, one.task.sample(sequences, seed=(seed, 3))).detach().double()
    of_graph = circuits.score_against_graph(found, one.task.graph).auroc
    counted = cc.graphs.edge_entries(one.task.graph)[1]
    values, effects = (_largest(scores)[counted] for scores in (found, one.knock_out))
    return {
        "model": one.name,
        "kind": one.about["kind"],
        "auroc_graph": of_graph,
        "auroc_used": float("nan") if one.used is None else auroc(values, one.used.numpy()[counted]),
        "rank_knock_out": rank_correlation(values, effects),
    }


def _largest(scores: Tensor) -> np.ndarray:
    return (scores.amax(dim=0) if scores.ndim == 3 else scores).double().numpy()


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Models with a known truth, written as files: which entries each one uses is known, because it was written in.

    *Planted* models hold the graph's circuit, *decoys* predict by other entries; both are written by hand, so that a
    method of discovery can be held to every entry. *Trained* models and trained decoys are added, for which the
    effects of cutting single entries are stored. The folder out/zoo/models has a folder for each, and a card that says
    what is in it and how to score a method (`causal_circuits.studies.zoo.score_method`).

        causal-circuits zoo                                      # 4 graphs x 4 kinds x 2 seeds
        causal-circuits zoo --graphs chain forest --models planted decoy --seeds 5
    """

    QUICK: ClassVar = {"n_ctx": 8, "steps": 50, "seeds": 1}

    graphs: tuple[str, ...] = GRAPHS  #: of chain, pairs, forest, two-parent
    models: tuple[str, ...] = MODELS  #: of planted, decoy, trained, trained-decoy
    seeds: int = 2  #: models of each graph and kind
    d_vocab: int = 3  #: number of tokens
    n_ctx: int = 20  #: context length
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 1000  #: training steps of 1,024 sequences

    def check(self) -> None:
        one_of(GRAPHS, graphs=self.graphs)
        one_of(MODELS, models=self.models)
        at_least(1, seeds=self.seeds)
        at_least(2, steps=self.steps)
        at_least(6, n_ctx=self.n_ctx)
        cc.InContextTask(make_graph("chain", self.n_ctx, 0), d_vocab=self.d_vocab, alpha=self.alpha)

    def cells(self) -> list[Cell]:
        axes = {"graph": self.graphs, "kind": self.models, "seed": range(self.seed, self.seed + self.seeds)}
        cells = grid(measure, axes, **self.flags("d_vocab", "n_ctx", "alpha", "steps"))
        return [cell for cell in cells if cell.settings["seed"] == self.seed or depends_on_seed(**cell.settings)]

    def report(self, rows: Mapping[str, Any]) -> Report:
        models = list(rows.values())
        scores = pd.concat([score_method(method, models).assign(method=name) for name, method in SIMPLE.items()])
        scores = scores[["method", *scores.columns[:-1]]]
        table = pd.DataFrame([{"model": one.name, **one.about, **one.about["losses"]} for one in models])
        return Report(
            title="A zoo of transformers with known truth",
            checks=make_checks(models),
            results={"models": table.to_dict("records"), "scores": scores.to_dict("records")},
            sections=[
                Section(
                    "What simple methods score",
                    "The chance (AUROC) that an entry which counts scores above another: left, entries of the latent "
                    "graph, which a decoy does not use; right, entries written in by hand, of which trained models "
                    "have none. A cell has the mean over models, and the least of them.",
                    figures={"scores": plot_scores(scores)},
                    table=scores.groupby(["method", "kind"], sort=False).mean(numeric_only=True).reset_index(),
                ),
                Section("The models", "A folder each, in models/; losses in nats.", table=table.drop(columns="losses")),
            ],
            saved={"models": lambda folder: write_zoo(folder, models)},
        )


def measure(graph: str, kind: str, seed: int, d_vocab: int, n_ctx: int, alpha: float, steps: int) -> ZooModel:
    task = cc.InContextTask(make_graph(graph, n_ctx, seed), d_vocab=d_vocab, alpha=alpha)
    if kind == "decoy":  # as it is written; that of `discovery_benchmark` is trained on
        subject = Subject.of(cc.models.plant_decoy(task.graph, d_vocab), task, "plant_decoy", seed)
    else:
        subject = make_subject(kind.removeprefix("trained-"), task, steps, seed)
    batch, by_hand = task.sample(512, seed=(seed, 4)), kind in ("planted", "decoy")
    losses = {"loss": subject.loss, "edge_posterior": subject.loss - subject.excess}
    return ZooModel(
        name=f"{graph}-{kind}-{seed}",
        model=subject.model,
        task=task,
        about={"kind": kind, "graph": graph, "seed": seed, "recipe": subject.recipe, "losses": losses},
        used=entries_written(kind, task.graph) if by_hand else None,
        circuit=edges_written(subject.model, batch[:64]) if by_hand else None,
        knock_out=knock_out(subject.model, batch),
    )


def depends_on_seed(graph: str, kind: str, **settings: Any) -> bool:
    """Whether another seed gives another model: not where a graph without chance is written in by hand."""
    return graph == "forest" or kind not in ("planted", "decoy")


def entries_written(kind: str, graph: nx.DiGraph) -> Tensor:
    """Which entries [query, key] of layer 0 a model written by hand reads."""
    edges = torch.from_numpy(cc.graphs.edge_entries(graph)[0])
    if kind == "planted":
        return edges
    used, n_ctx = torch.zeros_like(edges), len(edges)
    for child, row in carriers(graph).items():
        used[row, [*cc.graphs.parents_of(graph, child), child]] = True
    if not cc.graphs.has_query(graph):
        used[-1, list(cc.graphs.parents_of(graph, n_ctx))] = True
    return used


def edges_written(model: HookedTransformer, batch: cc.Batch) -> list[tuple[str, str]]:
    whole = circuits.circuit_model(model, batch)
    alive = (~circuits.inert_edges(whole)).tolist()
    return [edge for edge, of_use in zip(whole.edges, alive, strict=True) if of_use]


def make_checks(models: Sequence[ZooModel]) -> list[Check]:
    """Of every kind that is written in by hand."""
    checks = []
    for kind in ("decoy", "planted"):
        some = [one for one in models if one.about["kind"] == kind]
        if some:
            found = score_method(knock_out, some, seed=1).auroc_used
            claim = f"Cutting single entries ranks those written into every {kind} model above all others"
            evidence = f"AUROC {found.min():.3f} at the least in {len(some)} models"
            checks.append(Check(bool((found == 1.0).all()), claim, evidence))
    return checks


def write_zoo(folder: Path, models: Sequence[ZooModel]) -> None:
    for one in models:
        one.save(folder / one.name)
    write_files(folder, {"README.md": CARD.format(command="causal-circuits zoo", folder=folder)})


def plot_scores(scores: pd.DataFrame) -> Figure:
    panels = {}
    for title, column in (("entries of the graph", "auroc_graph"), ("entries written in", "auroc_used")):
        rows = scores.assign(auroc=scores[column], model=scores.kind)
        panels[title] = rows.dropna(subset="auroc").to_dict("records")
    return figures.plot_benchmark(panels)


def knock_out(model: HookedTransformer, batch: cc.Batch) -> Tensor:
    """Exact knock-out, by the divergence from the whole model, to a millionth of a nat: below that is rounding."""
    return cc.knock_out_edges(model, batch, metric="kl_to_model").effect.float().round(decimals=6)


def attention(model: HookedTransformer, batch: cc.Batch) -> Tensor:
    return cc.mean_attention(model, batch.tokens)[0]


def random(model: HookedTransformer, batch: cc.Batch) -> Tensor:
    """The same random scores for all models of a size."""
    return torch.rand(model.cfg.n_ctx, model.cfg.n_ctx, generator=torch.Generator().manual_seed(0))


SIMPLE: dict[str, Method] = {"exact knock-out": knock_out, "attention": attention, "random": random}
