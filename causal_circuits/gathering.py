"""What runs left behind, read back: the cells of many runs as one table, and the study of a folder."""

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from causal_circuits.arguments import check_arguments
from causal_circuits.display import frame
from causal_circuits.encoding import decode
from causal_circuits.measuring import FORMAT
from causal_circuits.storage import read_checked
from causal_circuits.studies.study import Study

CONFIG = "causal_circuits.study/1"
CONFIG_FILE = "config.json"


@check_arguments
def results(folder: str | os.PathLike[str]) -> Any:
    """A DataFrame of the cells of all runs in a folder and below: a row a cell, several if it returned a list of rows.

    Columns: run (its folder, seen from the given one), cell, seconds, then the cell's settings and what it measured, as
    far as it is a number, text or bool; b of a part a is in "a.b". A damaged cell is left out with a warning.

    Raises:
        ValueError: there is no kept cell.

    >>> with TemporaryDirectory() as folder:
    ...     for seed in (0, 1):
    ...         study = cc.studies.two_stage.Config.quickly(figure_9=0, steps=(2, 2), seed=seed)
    ...         _ = cc.run(study, f"{folder}/seed {seed}", quiet=True)
    ...     cc.results(folder).groupby(["run", "n_ctx"]).size().tolist()
    [3, 3, 3, 3]
    """
    rows = [row for path in sorted(Path(folder).rglob("cells/*.json")) for row in _rows(path, Path(folder))]
    if not rows:
        raise ValueError(f"no run has kept a cell in {folder}: give the folder of a run, or one that holds several")
    return frame(rows)


def study_of(folder: str | os.PathLike[str]) -> tuple[Study, str]:
    """The study that was run in a folder, and the command that ran it.

    Raises:
        ValueError: no study was, or its file is damaged.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"no study was run in {folder}: {path} is missing")
    values, _ = read_checked(path, CONFIG, "study")
    return decode(values["study"], {}), values["command"]


def _rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    try:
        values, _ = read_checked(path, FORMAT, "cell")
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}: left out", stacklevel=2)
        return
    run = path.parent.parent.relative_to(folder).as_posix()
    given = {"run": run, "cell": values["name"], "seconds": values["seconds"]}
    given |= {name: value for name, value in values["settings"].items() if _is_scalar(value)}
    result = values["result"]
    for part in result if isinstance(result, list) else [result]:
        yield given | _scalars(part)


def _scalars(values: Any, name: str = "") -> dict[str, Any]:
    """What is a number, text or bool in an encoded result, by its dotted name."""
    if _is_scalar(values):
        return {name or "result": values}
    parts: Mapping[str, Any] = {}
    match values:
        case {"dict": pairs}:
            parts = {str(key): part for key, part in pairs if _is_scalar(key)}
        case {"class": _, "fields": content}:
            parts = content
    found: dict[str, Any] = {}
    for key, part in parts.items():
        found |= _scalars(part, f"{name}.{key}" if name else key)
    return found


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
