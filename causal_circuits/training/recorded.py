"""What is recorded while a training runs: arrays in memory, or memory-mapped files of a folder, a row a state.

On disk each row has a checksum, which checkpoints and the folder's index hold: a file that was altered is named, and
what a killed process wrote after its last checkpoint does not count. One checksum of the whole file, taken at every
checkpoint, would cost the square of its length.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_circuits.recording import INDEX, INDEX_FORMAT, MATRICES, Snapshot, TrainingRecord
from causal_circuits.storage import read_rows, row_checksum, write_checked


class RecordedStates:
    """The recorded states of one model so far, in memory or, with a folder, in arrays that grow there."""

    def __init__(self, n_records: int, folder: str | os.PathLike[str] | None) -> None:
        self._n, self._folder = n_records, None if folder is None else Path(folder)
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._layers: tuple[int, ...] = ()
        self._arrays: dict[str, np.ndarray] = {}
        self._checksums: dict[str, list[int]] = {}  # of the rows that are on disk
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, snapshot: Snapshot) -> None:
        """Keep one state."""
        for name in MATRICES:
            value = getattr(snapshot, name)
            if value is None:
                continue
            row = value.numpy()
            if name not in self._arrays:
                self._arrays[name] = self._new_array(name, row)
            self._arrays[name][len(self._steps)] = row
            if self._folder is not None:
                self._checksums.setdefault(name, []).append(row_checksum(row))
        self._layers = snapshot.layers
        self._steps.append(snapshot.step)
        self._losses.append(snapshot.loss)

    def _new_array(self, name: str, row: np.ndarray) -> np.ndarray:
        shape = (self._n, *row.shape)
        if self._folder is None:
            return np.empty(shape, row.dtype)
        path = self._folder / f"{name}.npy"
        path.unlink(missing_ok=True)  # a link in its place is replaced, not followed
        (self._folder / f"{INDEX}.json").unlink(missing_ok=True)  # of the run that is written over
        return np.lib.format.open_memmap(path, mode="w+", dtype=row.dtype, shape=shape)

    def fields(self) -> dict[str, Any]:
        """The fields of a TrainingRecord that were measured."""
        matrices = {name: array[: len(self._steps)] for name, array in self._arrays.items()}
        return {
            "steps": tuple(self._steps),
            "layers": self._layers,
            "recorded_losses": torch.tensor(self._losses, dtype=torch.float64),
            **{name: torch.from_numpy(matrices[name]) if name in matrices else None for name in MATRICES},
        }

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: all of it; of arrays on disk, flushed here, the checksums."""
        state = {
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "layers": torch.tensor(self._layers, dtype=torch.int64),
        }
        for name, array in self._arrays.items():
            if isinstance(array, np.memmap):
                array.flush()
                state[f"{name}.checksums"] = torch.tensor(self._checksums[name], dtype=torch.int64)
            else:
                state[name] = torch.from_numpy(array[: len(self._steps)])
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` kept; rows on disk beyond it will be written over.

        Raises:
            ValueError: an array on disk is not what it was then (it names the file).
        """
        self._steps, self._losses = state["steps"].tolist(), state["losses"].tolist()
        self._layers, self._arrays, self._checksums = tuple(state["layers"].tolist()), {}, {}
        for name in MATRICES:
            if name in state:
                kept = state[name].numpy()
                self._arrays[name] = np.empty((self._n, *kept.shape[1:]), kept.dtype)
                self._arrays[name][: len(kept)] = kept
            elif self._folder is not None and f"{name}.checksums" in state:
                self._checksums[name] = state[f"{name}.checksums"].tolist()
                path = self._folder / f"{name}.npy"
                self._arrays[name] = read_rows(path, self._checksums[name], for_writing=True)

    def write_index(self, record: TrainingRecord) -> None:
        """Beside arrays on disk: their checksums, and all else that the record so far holds."""
        if self._folder is None or not self._checksums:
            return
        about = {name: getattr(record, name) for name in ("config", "seconds", "sequences_per_s", "path", "layers")}
        head = {"format": INDEX_FORMAT, "steps": record.steps, "about": about, "checksums": self._checksums}
        small = {"losses": record.losses, "recorded_losses": record.recorded_losses}
        write_checked(self._folder, INDEX, head, small)
