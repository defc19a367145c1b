"""The calls of the package that are fed damaged files and values; each makes its input from the chance it is given."""

import hashlib
import io
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from damage import crafted_npy, crafted_tensors, damage_file, damaged_array, damaged_value, forge, put

import causal_circuits as cc
from causal_circuits.streamed import Seal, StreamedArray, read_sealed
from causal_circuits.training.checkpoints import load_state
from causal_circuits.training.snapshots import SnapshotStore

CONFIG = cc.TrainConfig.joint(4, batch_size=4)
MATRICES = ("attention", "score_gradients")


class Targets:
    """Undamaged files, and the calls under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
        kept = cc.Checkpoints(folder / "checkpoint", every=1)
        model = self.new_model()
        self.whole = cc.train(
            model, self.task, CONFIG, record=cc.RecordAt.every(1, 4), progress=False, checkpoints=kept
        )
        self.whole.save(folder / "record")
        cc.save_model(model, folder / "model")
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.cut_short(folder / "streamed", folder / "going_on")
        self.begin()

    def begin(self) -> None:
        """From now on the files are those that are put back."""
        self.good = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.times = {path: path.stat().st_mtime_ns for path in self.good}

    def new_model(self) -> cc.models.HookedTransformer:
        """The model before training."""
        return cc.disentangled_transformer(3, 5, init_scale=0.1, seed=1)

    def cut_short(self, record: Path, kept: Path) -> None:
        """A training that streams its record and dies after the checkpoints of steps 2 and 3."""

        def die(step: int, model: object) -> None:
            if step == 4:
                raise InterruptedError

        try:
            self.train_on(self.new_model(), record, kept, die)
        except InterruptedError:
            return

    def train_on(
        self, model: cc.models.HookedTransformer, record: Path, kept: Path, on_record: Callable | None = None
    ) -> cc.TrainingRecord:
        """Train, or go on."""
        at, checkpoints = cc.RecordAt.every(1, 4, folder=record), cc.Checkpoints(kept, every=1)
        more = {"on_record": on_record, "checkpoints": checkpoints}
        return cc.train(model, self.task, CONFIG, record=at, progress=False, **more)

    def restore(self) -> None:
        """Undamaged files, and no others; raises if the call left a part behind."""
        parts = list(self.folder.rglob("*.part"))
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_symlink() or not (path.is_dir() or (path.is_file() and path in self.good)):
                path.unlink()
            elif path.is_dir() and not any(path in good.parents for good in self.good):
                shutil.rmtree(path)
        for path, content in self.good.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.stat().st_mtime_ns != self.times[path]:
                path.write_bytes(content)
                os.utime(path, ns=(self.times[path], self.times[path]))
        if parts:
            raise AssertionError(f"left behind: {parts[0].name}")

    # ---- damage

    def file_of(self, name: str, chance: random.Random, suffix: str = "") -> Path:
        """One file of a folder."""
        return chance.choice(sorted(p for p in self.good if p.parent.name == name and p.name.endswith(suffix)))

    def damage(self, name: str, chance: random.Random) -> Path:
        """One file of a folder damaged, gone, or exchanged for another; in one case of ten, two."""
        for _ in range(chance.choice([1] * 9 + [2])):
            path = self.file_of(name, chance)
            if path.suffix == ".safetensors" and chance.random() < 0.3:
                put(path, crafted_tensors(self.good[path], chance))
            elif chance.random() < 0.05:
                put(path, self.good[chance.choice(sorted(self.good))])
            else:
                damage_file(path, self.good[path], chance)
        return path.parent

    # ---- calls

    def model(self, chance: random.Random) -> None:
        """A saved model."""
        cc.load_model(self.damage("model", chance))

    def record(self, chance: random.Random) -> None:
        """A saved record: what is taken can be shown."""
        look_at(cc.TrainingRecord.load(self.damage("record", chance)))

    def checkpoint(self, chance: random.Random) -> None:
        """A folder of checkpoints: with one file damaged, the undamaged one must be found."""
        path = self.file_of("checkpoint", chance)
        damage_file(path, self.good[path], chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = load_state(path.parent, None)
        if state is None:
            raise AssertionError("one damaged file of two checkpoints, and none was found")

    def resumed(self, chance: random.Random) -> None:
        """Damaged checkpoints and streamed arrays: training ends bit for bit where an undamaged one does."""
        for _ in range(chance.choice([1, 1, 2])):
            self.damage(chance.choice(["going_on", "streamed"]), chance)
        model = self.new_model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.train_on(model, self.folder / "streamed", self.folder / "going_on")
        for name in ("losses", "recorded_losses", *MATRICES):
            if not torch.equal(getattr(found, name), getattr(self.whole, name)):
                raise AssertionError(f"other {name} after going on")
        for name, weight in model.named_parameters():
            if not torch.equal(weight, self.weights[name]):
                raise AssertionError(f"another {name} after going on")

    def forged_checkpoint(self, chance: random.Random) -> None:
        """Checkpoints of someone else's, with checksums that fit: taken, or refused in one line."""
        forge(self.file_of("going_on", chance, ".json"), chance)
        if chance.random() < 0.3:
            (self.folder / "streamed" / "attention.npy").write_bytes(crafted_npy(chance))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.train_on(self.new_model(), self.folder / "streamed", self.folder / "going_on")

    def streamed(self, chance: random.Random) -> None:
        """A streamed record: what is taken is what was written."""
        found = cc.TrainingRecord.load(self.damage("streamed", chance))
        n = len(found.steps)
        for name in MATRICES:
            value = getattr(found, name)
            if value is None or not torch.equal(value, getattr(self.whole, name)[:n]):
                raise AssertionError(f"a damaged {name} was taken")

    def forged_streamed(self, chance: random.Random) -> None:
        """An index of someone else's, with checksums that fit."""
        forge(self.folder / "streamed" / "streamed.json", chance)
        look_at(cc.TrainingRecord.load(self.folder / "streamed"))

    def npy(self, chance: random.Random) -> None:
        """A crafted array under a seal that fits: read, or opened to go on; its size on disk stays."""
        path, content = self.folder / "array.npy", crafted_npy(chance)
        path.write_bytes(content)
        n = chance.choice([len(content), len(content), 0, -1, 10, None, "x", 10**40, 1.5])
        sealed = content[:n] if isinstance(n, int) and n >= 0 else b""
        seal = Seal(n, hashlib.sha256(sealed).hexdigest())  # a seal is data like the rest
        try:
            if chance.random() < 0.5:
                np.asarray(read_sealed(path, seal))
            else:
                StreamedArray.reopen(path, seal, chance.choice([0, 1, 3, -1, 10**9])).seal()
        finally:
            if path.stat().st_size != len(content):
                raise AssertionError(f"the file has grown from {len(content)} to {path.stat().st_size} bytes")

    def store(self, chance: random.Random) -> None:
        """What a checkpoint keeps of snapshots, altered: restored, or refused."""
        store = SnapshotStore(5, self.folder / "streamed" if chance.random() < 0.5 else None)
        state = load_state(self.folder / "going_on", None).part("record.0")
        if chance.random() < 0.5:
            state |= {name: getattr(self.whole, name)[: len(state["steps"])] for name in MATRICES}
            state = {name: value for name, value in state.items() if not name.endswith(("bytes", "sha256"))}
        warnings.simplefilter("ignore")  # torch's, of the casts below
        for _ in range(chance.choice([1, 1, 2])):
            name = chance.choice(sorted(state))
            other = torch.as_tensor(np.asarray(damaged_array(chance, "int64 uint8 float32 float64 bool complex64")))
            changed = [other, state[name].double(), state[name][..., None], state[name].flatten()[:1], state[name] * 0]
            state[name] = chance.choice(changed)
            if chance.random() < 0.2:
                del state[name]
            if not state:
                return
        store.restore(state)

    def parents(self, chance: random.Random) -> None:
        """Values in place of parents."""
        listed = chance.choice([[-1, 0, 1], [None, 0, (0, 1), (2,)], [[], [0], [1]]])
        graph = cc.graph_from_parents(damaged_value(list(listed), chance))
        cc.InContextTask(graph, d_vocab=chance.choice([2, 3])).sample(2)

    def arrays(self, chance: random.Random) -> None:
        """Arrays in place of data."""
        tokens, targets = (damaged_array(chance) if chance.random() < 0.7 else None for _ in range(2))
        batch = self.task.sample(40, seed=1)
        tokens = batch.tokens if tokens is None else tokens
        cc.recover_graph(
            tokens, batch.target_probs if targets is None else targets, d_vocab=chance.choice([None, 3, 0, -1])
        )

    def calls(self) -> list[Callable[[random.Random], None]]:
        """Every target."""
        return [
            self.model,
            self.record,
            self.checkpoint,
            self.resumed,
            self.forged_checkpoint,
            self.streamed,
            self.forged_streamed,
            self.npy,
            self.store,
            self.parents,
            self.arrays,
        ]


def look_at(record: cc.TrainingRecord) -> None:
    """What a terminal and a notebook do with a record, and what saving it does."""
    repr(record), record._repr_html_()
    io.StringIO().write(str(record.config))
