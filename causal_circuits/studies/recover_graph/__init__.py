"""Recover the causal graph behind your own sequences, or an honest "cannot tell": no model, no training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro

import causal_circuits as cc
from causal_circuits.discovery.user_data import read_data
from causal_circuits.studies.recover_graph.arrays import read_arrays
from causal_circuits.studies.recover_graph.report import make_report
from causal_circuits.studies.study import Cell, Report, Study, at_least


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Recover the causal graph behind your own sequences, or an honest "cannot tell": no model, no training.

    DATA holds sequences whose last token is a query, and what followed it:

        tokens        integers [sequences, n_ctx], each in 0 .. d_vocab - 1, the query last
        target_probs  [sequences, d_vocab]: the probabilities of the next token   ... or
        labels        [sequences]: the next token itself

    as an .npz or a .safetensors file. Each sequence may have a transition matrix of its own. Every position gets a
    verdict: a child with its parent, a root, or undecided where the data cannot tell or contradict a forest (a second
    parent); the reason says which, and how many sequences would do where more of them are what is lacking.

        python analyses/recover_graph.py DATA.npz --out out/mine
        python analyses/recover_graph.py DATA.npz --max-parents 2
        python -c "import causal_circuits as cc, numpy as np; batch = cc.InContextTask(
        cc.chain_graph(12), d_vocab=4).sample(2000); np.savez('chain.npz',
        tokens=batch.tokens, target_probs=batch.target_probs)"      # sequences to try it on

    The folder gets report.html (look at this), results.json and figures/. In results.json, graph.found_parents has one
    entry for each context position (null: no parent found, or the query); graph.p_values and graph.weights are those of
    each position's candidate (null at the first and the last, which have none). With --max-parents K above 1, where the
    last position is no query, found_parents has a list a position (empty: a root; null: undecided), and
    graph.target_parents holds those of what follows (null: undecided).
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]  #: an .npz or .safetensors file
    d_vocab: int | None = None  #: number of tokens; None: what the data show
    level: float = 0.05  #: the chance of any false edge
    max_parents: int = 1  #: parents that the target and each position may have; above 1 no position need be a query

    @cached_property
    def arrays(self) -> dict[str, Any]:
        return read_arrays(self.data)

    def check(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"--level must lie in (0, 1): got {self.level}; 0.05 is usual")
        at_least(1, max_parents=self.max_parents)
        read_data(**with_targets(self.arrays), d_vocab=self.d_vocab)

    def cells(self) -> list[Cell]:
        content = hashlib.sha256(self.data.read_bytes()).hexdigest()
        settings = {"data": str(self.data), "sha256": content, "d_vocab": self.d_vocab, "level": self.level}
        return [Cell("recovery", measure, {**settings, "max_parents": self.max_parents})]

    def report(self, rows: Mapping[str, cc.discovery.RecoveredGraph]) -> Report:
        (targets,) = self.arrays.keys() - {"tokens"}
        return make_report(rows["recovery"], targets, str(self.data))


def with_targets(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens, and as targets what the file holds beside them."""
    return {"tokens": arrays["tokens"], "targets": arrays.get("target_probs", arrays.get("labels"))}


def measure(data: str, sha256: str, d_vocab: int | None, level: float, max_parents: int) -> cc.discovery.RecoveredGraph:
    """The graph behind a file of this content."""
    arrays = with_targets(read_arrays(Path(data)))
    return cc.recover_graph(**arrays, d_vocab=d_vocab, level=level, max_parents=max_parents)
