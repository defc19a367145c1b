"""The first gradient beside the mutual information that it tends to."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from causal_circuits.studies.gradient_information import measure
from causal_circuits.studies.gradient_information.report import make_report
from causal_circuits.studies.study import Cell, Report, Study, at_least, one_of
from causal_circuits.studies.tables import GRAPHS


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """In a child's row of layer 0's first gradient the parent is largest; it follows the information it tends to.

    For every graph, d_vocab, alpha and n_ctx: minus the gradient of the reduced model at its start, measured on fresh
    sequences, beside two predictions - g, the paper's chi-squared information in the limit of long contexts, and G,
    the expectation of the gradient itself at this very context length, computed without sequences
    (`finite_context_gradient`). Measurement against G checks two computations of one thing; how far g is from both
    says what a short context does to the information. Then the same against the number of sequences, the row maxima
    of random forests, and a training run: how the agreement evolves and in which order edges form.

        python analyses/gradient_information.py               # the whole table, some five minutes on one core
        python analyses/gradient_information.py --n-ctx 100 --alpha 1 --d-vocab 3 5 --sequences 50000
    """

    QUICK: ClassVar = {
        "graph": ("chain", "forest"), "d_vocab": (3,), "n_ctx": (10, 20), "sequences": 10_000, "forests": 4
    }  # fmt: skip

    graph: tuple[str, ...] = GRAPHS  #: any of chain, pairs, forest
    d_vocab: tuple[int, ...] = (3, 5)  #: numbers of tokens
    alpha: tuple[float, ...] = (0.1, 1.0)  #: Dirichlet concentrations of the transition matrices
    n_ctx: tuple[int, ...] = (20, 60, 100, 200)  #: context lengths
    sequences: int = 100_000  #: sequences a setting
    forests: int = 50  #: random forests whose row maxima are checked

    def check(self) -> None:
        one_of(GRAPHS, graph=self.graph)
        at_least(4, n_ctx=self.n_ctx)
        at_least(2, d_vocab=self.d_vocab)
        at_least(100, sequences=self.sequences)
        at_least(0, forests=self.forests)

    def cells(self) -> list[Cell]:
        settings = list(product(self.graph, self.d_vocab, self.alpha, self.n_ctx))
        # where theory and measurement are furthest apart: this one is shown pair by pair
        far = ("forest", min(self.alpha), min(self.n_ctx))
        shown = max((i for i, (graph, _, *rest) in enumerate(settings) if (graph, *rest) == far), default=0)
        swept = (max(self.n_ctx[:3]), max(self.alpha))
        names = ("graph", "d_vocab", "alpha", "n_ctx")
        measured = [
            Cell(
                f"setting {index} {' '.join(str(value) for value in setting)}",
                measure.measure_setting,
                {
                    **dict(zip(names, setting, strict=True)),
                    "n_sequences": self.sequences,
                    "seed": (self.seed, index),
                    "with_sweep": (setting[3], setting[2]) == swept,
                    "with_matrices": index == shown,
                },
            )
            for index, setting in enumerate(settings)
        ]
        forests = [
            Cell(f"forest {k}", measure.check_forest, {"seed": k}) for k in range(self.seed, self.seed + self.forests)
        ]
        training = {"seed": self.seed, "steps": 200 if self.quick else 600}
        return [
            *measured,
            *forests,
            Cell("training", measure.train_and_compare, training),
            Cell("closed form", measure.backward_pass_difference, {"seed": self.seed}),
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        return make_report(rows)
