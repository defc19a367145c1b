"""A study of sums, for the tests of the runner and of the command line: each cell is measured in no time."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Cell, Report, Study, at_least

MEASURED: list[str] = []  # in this process, in order


class Unpicklable(Exception):
    """Cannot be sent to another process."""

    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"{number} is bad: {why}")


@dataclass(frozen=True)
class Sum:
    """What a cell measures."""

    total: float
    draws: Tensor
    more: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Random numbers have a sum.

    More about it.
    """

    QUICK: ClassVar = {"numbers": (2, 3), "size": 2}

    numbers: tuple[int, ...] = (1, 2, 3, 4)
    """one cell each"""
    size: int = 1000
    """of the tensor in a cell"""
    bad: int | None = None
    """the number whose cell raises"""
    wait: float = 0.0
    """seconds that a cell takes"""
    deaf: int | None = None
    """the number whose cell never ends, and does not react to a time limit"""
    deadly: int | None = None
    """the number whose cell kills its process"""
    log: Path | None = None
    """file to which each cell appends its number when it is done"""

    def check(self) -> None:
        """Positive numbers."""
        at_least(1, numbers=self.numbers, size=self.size)

    def cells(self) -> list[Cell]:
        """One a number."""
        same = {"size": self.size, "seed": self.seed, "wait": self.wait, "log": self.log and str(self.log)}
        odd = {"bad": self.bad, "deaf": self.deaf, "deadly": self.deadly}
        settings = [{"number": n, **{name: n == at for name, at in odd.items()}, **same} for n in self.numbers]
        return [Cell(f"number {own['number']}", measure, own, scratch=True, cores=1) for own in settings]

    def report(self, rows: Mapping[str, Sum]) -> Report:
        """The sum of all."""
        total = sum(row.total for row in rows.values())
        return Report(
            "Sums",
            [Check(total > 0, "the sum is positive", f"it is {total:.3f}")],
            {"total": total, "nothing": float("nan"), "config": {"n_cells": len(rows)}},
            [Section("Numbers", "Each number and its sum.", table=[{"n": n, "sum": r.total} for n, r in rows.items()])],
            [("total", f"{total:.3f}")],
            saved={"note.txt": lambda path: path.write_text("written")},
        )


def measure(
    number: int,
    size: int,
    seed: int,
    wait: float,
    bad: bool,
    deaf: bool,
    deadly: bool,
    log: str | None,
    scratch: Path | None,
) -> Sum:
    """A sum of random numbers; the first tenth of the waiting is kept in scratch."""
    MEASURED.append(f"number {number}")
    if deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if deaf:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(1000)
    if scratch is not None and not (scratch / "begun").is_file():
        time.sleep(wait / 10)
        cc.storage.write_files(scratch, {"begun": f"{number} {seed}"})
    time.sleep(0.9 * wait)
    if scratch is not None and (scratch / "begun").read_text() != f"{number} {seed}":
        raise ValueError("the scratch of other settings")
    if bad:
        raise Unpicklable(number, why="asked for")
    draws = torch.rand(size, generator=torch.Generator().manual_seed(1000 * seed + number))
    if log is not None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{number}\n")
    return Sum(float(draws.sum()), draws)


def measure_surroundings() -> dict[str, Any]:
    """What a cell finds where it is measured."""
    return {"threads": torch.get_num_threads(), "number": float(torch.rand(()))}
