"""Work kept in units, so that a script that was killed goes on where it was. Not a script.

A unit - a setting, a graph, a seed, a training - is written once, whole, with a checksum and the run that it belongs to
(the script, the flags that decide numbers, versions). Started again with the same flags, a script reads the units that
are there and makes the others; its results are then those of a run that was never interrupted, times excepted. A unit
that is damaged, or of another run, is named in one line on stderr and made again.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from command_line import BEGAN
from kept_values import put_together, taken_apart
from results_file import flag_values, remove_ours, versions
from torch import Tensor

import causal_circuits as cc

FOLDER = "unfinished"  # in --out
UNIT, RUN = "causal_circuits.unit/1", "causal_circuits.run/1"
NO_MATTER = ("out", "quiet")  # flags that decide no number


class Units:
    """The finished parts of one run.

    Args:
        folder: of this run and no other; made if missing.
        run: JSON values that every unit must have in common with this run.

    Attributes:
        earlier_s: what earlier calls spent on the units that this one read back.

    Raises:
        CheckpointError: the folder holds units of another run; it names the first difference.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self._folder, self._run, self.earlier_s = folder, json.loads(json.dumps(run)), 0.0
        self._refuse_another_run()
        cc.storage.write_checked(folder, "run", {"format": RUN, "run": self._run})

    @classmethod
    def of(
        cls,
        program: str,
        arguments: argparse.Namespace,
        *,
        folder: str = FOLDER,
        free: Sequence[str] = (),
        **more: Any,
    ) -> "Units":
        """Those of a script, in a folder of --out; `free` flags may differ, `more` is what else decides numbers."""
        flags = {name: value for name, value in flag_values(arguments).items() if name not in (*NO_MATTER, *free)}
        return cls(arguments.out / folder, {"program": program, **flags, **more, "versions": versions()})

    def _refuse_another_run(self) -> None:
        path = self._folder / "run.json"
        begun = [*self._folder.glob("unit_*.json"), *self._folder.glob("training_*/**/step_*.json")]
        if not begun or not path.is_file():
            return
        try:
            head, _ = cc.storage.read_checked(path, RUN, "description of the run")
        except (ValueError, OSError) as error:
            tell(f"{error}: each unit is asked what run it is of")
            return
        other = cc.storage.first_difference(head.get("run"), self._run)
        if other is not None:
            raise cc.CheckpointError(
                f"{self._folder} holds another run: {shown(other)}; give its flags again to go on with it, choose "
                "another folder for --out, or delete that one"
            )

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """The results of a unit (numbers, tensors, dataclasses): as they were kept, or as `make` makes them."""
        path = self._folder / f"unit_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.json"
        if path.is_file():
            try:
                return self._read(path, name)
            except (ValueError, OSError) as error:
                tell(f"{error}: made again")
        began, tensors = time.perf_counter(), dict[str, Tensor]()
        result = make()
        about = {"format": UNIT, "name": name, "run": self._run, "seconds": time.perf_counter() - began}
        head = {**about, "result": taken_apart(result, tensors)}
        cc.storage.write_checked(self._folder, path.stem, head, tensors or None)
        return result

    def _read(self, path: Path, name: str) -> Any:
        head, tensors = cc.storage.read_checked(path, UNIT, "unit")
        there = {part: head.get(part) for part in ("name", "run")}
        other = cc.storage.first_difference(there, {"name": name, "run": self._run})
        if other is not None:
            raise ValueError(f"the unit {path} is of another run: {shown(other)}")
        seconds = head.get("seconds")
        if type(seconds) not in (int, float):
            raise ValueError(f"the unit {path} is damaged (it took {seconds!r} seconds)")
        try:
            result = put_together(head.get("result"), tensors)
        except ValueError as error:
            raise ValueError(f"the unit {path} is damaged ({error})") from error
        self.earlier_s += seconds
        return result

    def training(self, name: str) -> Path:
        """Where a training keeps its checkpoints."""
        return self._folder / f"training_{name}"

    @property
    def program(self) -> str:
        """The script's name."""
        return str(self._run["program"])

    def wall_s(self) -> float:
        """Seconds since the script began, and what earlier calls spent on the units that were read back."""
        return time.perf_counter() - BEGAN + self.earlier_s

    def finish(self) -> None:
        """Remove the units: the results are written down."""
        remove_ours(self._folder, "run.json", "unit_*", "training_*")


def weights_of(model: Any) -> dict[str, Tensor]:
    """What training moves in a model: what a unit keeps of it."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def with_weights(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """The model, given the weights that a unit kept."""
    model.load_state_dict(weights, strict=False)
    return model


def shown(difference: tuple[str, Any, Any]) -> str:
    """A difference in words."""
    name, there, here = difference
    return f"{name.removeprefix('run.')} is {there!r} there, {here!r} here"


def tell(text: str) -> None:
    """One line on stderr, under --quiet too."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}\n")
