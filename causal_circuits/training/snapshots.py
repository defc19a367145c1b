"""Where snapshots go while a training runs: into memory, or into a folder, row by row."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_circuits.recording import MATRICES, Snapshot, TrainingRecord
from causal_circuits.storage import write_checked
from causal_circuits.streamed import INDEX, INDEX_FORMAT, Seal, StreamedArray

_FLOATS = (torch.float32, torch.float64)
# What `SnapshotStore.state` keeps: dtypes, and a shape (None: one number a snapshot). Arrays have a row a snapshot.
_KEPT: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...] | None]] = {
    "steps": ((torch.int64,), None),
    "layers": ((torch.int64,), None),
    "losses": ((torch.float64,), None),
    "bytes": ((torch.int64,), ()),
    "sha256": ((torch.uint8,), (32,)),
}


class SnapshotStore:
    """The arrays of a record while it grows: in memory, or as memory-mapped files of a folder."""

    def __init__(self, n_records: int, folder: str | os.PathLike[str] | None) -> None:
        self._n, self._folder = n_records, None if folder is None else Path(folder)
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._layers: tuple[int, ...] = ()
        self._arrays: dict[str, np.ndarray] = {}
        self._streamed: dict[str, StreamedArray] = {}
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def streams(self) -> bool:
        """Whether arrays are growing on disk."""
        return bool(self._streamed)

    def add(self, snapshot: Snapshot) -> None:
        """Keep one snapshot."""
        for name in MATRICES:
            value = getattr(snapshot, name)
            if value is not None:
                self._add(name, value.numpy())
        self._layers = snapshot.layers
        self._steps.append(snapshot.step)
        self._losses.append(snapshot.loss)

    def _add(self, name: str, value: np.ndarray) -> None:
        shape = (self._n, *value.shape)
        if self._folder is None:
            if name not in self._arrays:
                self._arrays[name] = np.empty(shape, value.dtype)
            self._arrays[name][len(self._steps)] = value
            return
        if name not in self._streamed:
            (self._folder / f"{INDEX}.json").unlink(missing_ok=True)  # of the run that is written over
            self._streamed[name] = StreamedArray.new(self._folder / f"{name}.npy", shape, value.dtype)
        self._streamed[name].append(value)

    def fields(self) -> dict[str, Any]:
        """The fields of a TrainingRecord that were measured."""
        return {
            "steps": tuple(self._steps),
            "layers": self._layers,
            "recorded_losses": torch.tensor(self._losses, dtype=torch.float64),
            **{name: self._tensor(name) for name in MATRICES},
        }

    def _tensor(self, name: str) -> Tensor | None:
        if name in self._streamed:
            return torch.from_numpy(self._streamed[name].rows())
        return torch.from_numpy(self._arrays[name][: len(self._steps)]) if name in self._arrays else None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: all that was added; of streamed arrays, flushed here, the checksum."""
        state = {
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "layers": torch.tensor(self._layers, dtype=torch.int64),
        }
        for name, array in self._arrays.items():
            state[name] = torch.from_numpy(array[: len(self._steps)])
        for name, streamed in self._streamed.items():
            seal = streamed.seal()
            state[f"{name}.bytes"] = torch.tensor(seal.bytes)
            state[f"{name}.sha256"] = torch.tensor(list(bytes.fromhex(seal.sha256)), dtype=torch.uint8)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` kept; streamed arrays are opened again, later snapshots to be overwritten.

        Raises:
            ValueError: a streamed array is not what it was then (it names the file), or this is no such state.
        """
        _check(state, self._n)
        for name in MATRICES:
            if name in state:
                kept = state[name].numpy()
                self._arrays[name] = np.empty((self._n, *kept.shape[1:]), kept.dtype)
                self._arrays[name][: len(kept)] = kept
            elif self._folder is not None and f"{name}.sha256" in state:
                seal = Seal(int(state[f"{name}.bytes"]), bytes(state[f"{name}.sha256"].tolist()).hex())
                path = self._folder / f"{name}.npy"
                self._streamed[name] = StreamedArray.reopen(path, seal, len(state["steps"]))
        self._steps, self._losses = state["steps"].tolist(), state["losses"].tolist()
        self._layers = tuple(state["layers"].tolist())

    def write_index(self, record: TrainingRecord) -> None:
        """Beside streamed arrays: their checksums, and all else that the record so far holds."""
        if self._folder is None or not self.streams:
            return
        about = {name: getattr(record, name) for name in ("config", "seconds", "sequences_per_s", "path", "layers")}
        seals = {name: asdict(streamed.seal()) for name, streamed in self._streamed.items()}
        head = {"format": INDEX_FORMAT, "steps": record.steps, "about": about, "seals": seals}
        small = {"losses": record.losses, "recorded_losses": record.recorded_losses}
        write_checked(self._folder, INDEX, head, small)


def _check(state: Mapping[str, Tensor], most: int) -> None:
    """Raise a ValueError unless this is what `SnapshotStore.state` keeps of at most so many snapshots."""
    steps = state.get("steps")
    n = len(steps) if steps is not None and steps.ndim == 1 else -1
    wrong = [] if 0 <= n <= most and "losses" in state else ["steps"]
    wrong += [] if "layers" in state else ["layers"]
    for name, value in state.items():
        dtypes, size = _KEPT.get(name.rpartition(".")[2], (_FLOATS, (n, *value.shape[1:])))
        if name.endswith(".sha256") and f"{name.removesuffix('sha256')}bytes" not in state:
            wrong.append(name)
        size = (value.numel() if name == "layers" else n,) if size is None else size
        fits = value.shape == size and (value.dtype in dtypes or value.numel() == 0)
        wrong += [] if fits and (n > 0 or name in ("steps", "losses", "layers")) else [name]
    if wrong:
        raise ValueError(f"the checkpoint's record is damaged: its {wrong[0]} is not what a training leaves")
