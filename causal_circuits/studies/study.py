"""The shape of a study: which cells it measures, and what the measured cells add up to.

A study is a frozen dataclass. Its docstring is the claim and the --help, its fields are the flags. `cells` lists what
is to be measured, each cell alone and in any process; `report` turns the results of all cells into checks, tables and
figures. `running.run` does the rest: it measures the missing cells, keeps each, and writes results.json and the page.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from causal_circuits.pages import Check, Section


@dataclass(frozen=True)
class Cell:
    """One setting of a study, measured by a function of a module (not a lambda: another process must find it).

    Attributes:
        name: unique in the study, and the name of the file that keeps its result.
        measure: called as measure(**settings); what it returns can be encoded (`encoding.encode`).
        settings: JSON values that decide every number of the result.
        scratch: whether measure also takes `scratch`, a folder that survives a kill and is removed when the cell is
            done (for checkpoints; None where nothing is written).
        progress: whether measure also takes `progress`, for `train(..., progress=progress)`: False under --quiet.
        cores: threads of torch and of the compiled core, wherever it is measured; what a cluster keeps free for it.
        gpus, memory: what else a cluster keeps free for it; memory in bytes.

    >>> Cell("sum", sum, {"start": 2}).name
    'sum'
    """

    name: str
    measure: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    scratch: bool = False
    progress: bool = False
    cores: int = 2
    gpus: float = 0.0
    memory: int | None = None


@dataclass(frozen=True)
class Report:
    """What the cells of a study add up to.

    Attributes:
        title: of the page.
        checks: the claims, each with the numbers that decide it.
        results: what results.json holds beside command, config, versions and timing.
        sections: the evidence, picture by picture.
        summary: what the closing table says after the checks, (label, text) line by line.
        about: what the page's last section says beside command, seed, time and versions.
        saved: more that goes to the run's folder: name of a file or folder -> function that writes it there.

    >>> Report("Counting", [Check(True, "2 is even", "2 % 2 = 0")], {"two": 2}).results
    {'two': 2}
    """

    title: str
    checks: Sequence[Check]
    results: Mapping[str, Any]
    sections: Sequence[Section] = ()
    summary: Sequence[tuple[str, str]] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    saved: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)

    def table(self, *, quick: bool = False) -> str:
        """The closing table: every check (in a quick run, too small to decide, "not tested"), then `summary`."""
        checks = [
            ("not tested" if quick else str(check.state), f"{check.claim}: {check.evidence}") for check in self.checks
        ]
        return "\n".join(f"{label:11s} {text}" for label, text in (*checks, *self.summary))

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li>{check.state}: <b>{escape(check.claim)}</b><br>{escape(check.evidence)}</li>" for check in self.checks
        )
        return f"<h3>{escape(self.title)}</h3><ul>{items}</ul><pre>{escape(self.table())}</pre>"


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """A claim and how it is measured; subclasses add their flags as fields, checked in `check`.

    Raises:
        ValueError: a flag has a value with which there is nothing to measure.
    """

    QUICK: ClassVar[Mapping[str, Any]] = {}  # smaller defaults, for a look in seconds; empty: there is no --quick

    seed: int = 0  #: fixes data, evaluation and every number
    quick: bool = False  #: small defaults, for a look in seconds; flags given beside it still count

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more: got {self.seed}")
        if self.quick and not self.QUICK:
            raise ValueError(f"{self.program()} has no --quick: choose smaller flags")
        self.check()

    @classmethod
    def quickly(cls, **flags: Any) -> "Study":
        """The study with the defaults of --quick."""
        return cls(**{**cls.QUICK, **flags, "quick": True})

    @classmethod
    def program(cls) -> str:
        """The name of the study: of its module, where that is one of this package."""
        return cls.__module__.rpartition(".")[2] if cls.__name__ == "Config" else cls.__name__

    def flags(self, *names: str) -> dict[str, Any]:
        """Some flags by name, as settings of cells."""
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:  # noqa: B027  # a study may have nothing to check
        """Raise a ValueError for flags that make no study."""

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """What is to be measured."""

    @abstractmethod
    def report(self, rows: Mapping[str, Any]) -> Report:
        """What the results, by the names of their cells and in the order of `cells`, add up to."""


def grid(measure: Callable[..., Any], axes: Mapping[str, Iterable[Any]], cores: int = 2, **fixed: Any) -> list[Cell]:
    """A cell for every combination of the axes' values, named by them; fixed settings are those of all cells.

    >>> [cell.name for cell in grid(sum, {"n_ctx": (8, 16), "seed": (0,)}, alpha=0.1)]
    ['n_ctx 8, seed 0', 'n_ctx 16, seed 0']
    """
    settings = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [
        Cell(", ".join(f"{k} {v}" for k, v in own.items()), measure, {**own, **fixed}, cores=cores) for own in settings
    ]


def at_least(smallest: int | float, **flags: Any) -> None:
    """A ValueError for the first flag (or entry of a flag that is a tuple) below a number; None is let through."""
    for flag, number in _entries(flags):
        if number is not None and not number >= smallest:
            raise ValueError(f"{flag} must be at least {smallest}: got {number}")


def one_of(names: Sequence[str], **flags: Any) -> None:
    """A ValueError for the first flag (or entry of a flag that is a tuple) that is none of these names."""
    for flag, name in _entries(flags):
        if name not in names:
            raise ValueError(f"{flag} must be one of {', '.join(names)}: got {name!r}")


def _entries(flags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flags.items():
        for entry in value if isinstance(value, tuple | list) else (value,):
            yield f"--{name.replace('_', '-')}", entry
