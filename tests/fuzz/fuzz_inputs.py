"""Malformed files, arrays and flags: every one must be taken or refused in one line, quickly, leaving no half file.

    python tests/fuzz/fuzz_inputs.py                              # 12,000 inputs, some minutes
    python tests/fuzz/fuzz_inputs.py --inputs 600 --seed 3 --out fuzz.json

For each input, drawn from --seed and its number: the call returns, or raises ValueError (files also OSError; flags
SystemExit with status 0 or 2 and one line on stderr). Anything else - another error, more than --seconds, a .part file,
a changed input file - is a failure, printed with its number. Exit status 1 if there was one.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analyses")]

import numpy as np  # noqa: E402  # the package may not be installed
import torch  # noqa: E402

import causal_circuits as cc  # noqa: E402
from causal_circuits.training.checkpoints import load_state  # noqa: E402

NASTY: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**40, -0.0, 0.5, 1e308, float("nan"), float("inf"), "", "x"]
NASTY += ["\x00", "../../etc/passwd", "9" * 5000, [], [[]], {}, {"a": []}, [None] * 50, [-1, 0, 1]]


class Slow(Exception):
    """An input took too long."""


def stop(number: int, frame: object) -> None:
    """The alarm."""
    raise Slow


# ---- how things are damaged


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Truncated, flipped, doubled, padded, replaced."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at, n = chance.randrange(len(data) + 1), chance.randrange(1, 20)
        kind = chance.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at:at] = chance.randbytes(n)
        elif kind == 3:
            del data[at : at + n]
        elif kind == 4:
            data[at : at + n] = data[:n]
        else:
            data[:8] = chance.choice([b"\xff" * 8, b"\x00" * 8, (2**40).to_bytes(8, "little")])
    return bytes(data)


def damaged_value(value: Any, chance: random.Random) -> Any:
    """JSON values with one of them replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name, changed = chance.choice(list(value)), dict(value)
        kind = chance.randrange(4)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[name + "x"] = changed.pop(name)
        else:
            changed[name] = damaged_value(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        at, longer = chance.randrange(len(value)), list(value)
        longer[at : at + chance.choice([0, 1, 1, 1])] = [damaged_value(value[at], chance)]
        return longer
    return chance.choice(NASTY)


def damaged_text(text: str, chance: random.Random) -> bytes:
    """A JSON file with damaged values, or damaged bytes, or brackets without end."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice([b"[" * 100_000, b'{"a":' * 50_000, b"", b"\xff\xfe", b"null", b"[1e999]", b"NaN"])
    if kind <= 2:
        return damaged_bytes(text.encode(), chance)
    return json.dumps(damaged_value(json.loads(text), chance)).encode()


def damaged_array(chance: random.Random) -> Any:
    """An array that is no batch of tokens, or nearly one."""
    shape = [chance.choice([0, 1, 2, 5, 40]) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
    kind = chance.choice(["int64", "int8", "uint8", "float32", "float64", "bool", "complex64", "U3", "object"])
    values = np.random.default_rng(chance.randrange(2**32)).integers(-1, 5, size=shape)
    array = values.astype(kind) if kind != "object" else np.array([None, [1], "x"], dtype=object)
    if array.dtype.kind == "f" and array.size and chance.random() < 0.5:
        array.flat[chance.randrange(array.size)] = chance.choice([np.nan, np.inf, -1e30])
    return chance.choice([array, array.tolist(), torch.as_tensor(array) if array.dtype.kind in "iufb" else array])


# ---- what is fed


class Targets:
    """The calls under test; each makes its input from the chance given and returns nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
        kept = cc.Checkpoints(folder / "checkpoint", every=1)
        config = cc.TrainConfig.joint(2, batch_size=4)
        model = cc.disentangled_transformer(3, 5)
        record = cc.train(model, self.task, config, record=cc.RecordAt.every(1, 2), progress=False, checkpoints=kept)
        record.save(folder / "record")
        cc.save_model(model, folder / "model")
        self.folders = {path.name for path in folder.iterdir()}
        self.good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def restore(self) -> None:
        """Undamaged files, and no others; raises if the call left a part behind."""
        parts = list(self.folder.rglob("*.part"))
        for path in self.folder.iterdir():
            if path.name not in self.folders:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.good:
                path.unlink()
        for path, content in self.good.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        if parts:
            raise AssertionError(f"left behind: {parts[0].name}")

    def damage(self, name: str, chance: random.Random) -> Path:
        """One file of a folder, damaged or gone."""
        path = chance.choice(sorted(path for path in self.good if path.parent.name == name))
        content = self.good[path]
        if chance.random() < 0.03:
            path.unlink()
        elif path.suffix == ".json":
            path.write_bytes(damaged_text(content.decode(), chance))
        else:
            path.write_bytes(damaged_bytes(content, chance))
        return path.parent

    def model(self, chance: random.Random) -> None:
        """A saved model."""
        cc.load_model(self.damage("model", chance))

    def record(self, chance: random.Random) -> None:
        """A saved record."""
        cc.TrainingRecord.load(self.damage("record", chance))

    def checkpoint(self, chance: random.Random) -> None:
        """A folder of checkpoints: the undamaged one must be found."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = load_state(self.damage("checkpoint", chance), None)
        if state is None:
            raise AssertionError("one damaged file of two checkpoints, and none was found")

    def graph_file(self, chance: random.Random) -> None:
        """--parents FILE."""
        from causal_graph import read_parents

        path = self.folder / "parents.json"
        path.write_bytes(
            damaged_text(chance.choice(["[-1, 0, 1, 2]", "[null, 0, null, 2]", "[[], [0], [0, 1]]"]), chance)
        )
        cc.InContextTask(cc.graph_from_parents(read_parents(path)), d_vocab=3).sample(2)

    def parents(self, chance: random.Random) -> None:
        """Values in place of parents."""
        listed = chance.choice([[-1, 0, 1], [None, 0, (0, 1), (2,)], [[], [0], [1]]])
        graph = cc.graph_from_parents(damaged_value(list(listed), chance))
        cc.InContextTask(graph, d_vocab=chance.choice([2, 3])).sample(2)

    def arrays_file(self, chance: random.Random) -> None:
        """The data file of recover_graph.py."""
        from user_arrays import read_arrays

        path, batch = self.folder / "data.npz", self.task.sample(6, seed=chance.randrange(9))
        arrays = {"tokens": batch.tokens.numpy(), "target_probs": batch.target_probs.numpy()}
        arrays[chance.choice(["tokens", "target_probs", "labels", "x"])] = np.asarray(damaged_array(chance))
        if chance.random() < 0.5:
            arrays.pop(chance.choice(list(arrays)))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        path.write_bytes(damaged_bytes(content, chance) if chance.random() < 0.7 else content)
        read_arrays(path)

    def arrays(self, chance: random.Random) -> None:
        """Arrays in place of data."""
        tokens, targets = (damaged_array(chance) if chance.random() < 0.7 else None for _ in range(2))
        batch = self.task.sample(40, seed=1)
        tokens = batch.tokens if tokens is None else tokens
        cc.recover_graph(
            tokens, batch.target_probs if targets is None else targets, d_vocab=chance.choice([None, 3, 0, -1])
        )

    def flags(self, chance: random.Random) -> None:
        """The command lines of the scripts, up to where work would begin."""
        import causal_graph
        import induction_head
        import recover_and_prove
        import reproduce_paper
        from command_line import CLAIMED

        def begin(*given: object) -> None:
            raise SystemExit(0)

        recover_and_prove.run = begin
        reproduce_paper.run_figures = begin
        module = chance.choice([causal_graph, induction_head, reproduce_paper])
        names = ["--seed", "--out", "--quiet", "--d-vocab", "--n-ctx", "--alpha", "--steps", "--graph", "--parents"]
        names += ["--root-probability", "--figure", "--budget", "--quick", "--faithful", "--table", "--nonsense"]
        values = [
            "0",
            "-1",
            "3",
            "nan",
            "inf",
            "1e400",
            "",
            "x",
            "9",
            "2",
            "99999999999999999999",
            "chain",
            "\udcff",
            "--",
        ]
        values += [
            str(self.folder / "model" / "model.json"),
            str(self.folder / "model"),
            "/dev/null",
            "/dev/null/x",
            "0.5",
        ]
        words = ["--out", str(self.folder / "out")]
        for _ in range(chance.randrange(1, 5)):
            words += [chance.choice(names)] + [chance.choice(values) for _ in range(chance.choice([0, 1, 1, 1, 2]))]
        sys.argv = ["script.py", *words]
        error = io.StringIO()
        with CLAIMED, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            try:
                module.main()
            except SystemExit as ended:
                said = error.getvalue()
                if ended.code not in (0, 2) or (ended.code == 2 and said.count("\n") != 1):
                    raise AssertionError(f"status {ended.code}, {said!r}") from ended
                if ended.code == 2:
                    raise ValueError(said.strip()) from ended


def one(call: Callable[[random.Random], None], chance: random.Random, seconds: int) -> str:
    """ "taken", "refused", or what went wrong."""
    signal.alarm(seconds)
    try:
        call(chance)
    except (ValueError, OSError) as error:
        return "refused" if "\n" not in str(error).strip() else f"failed: more than one line: {error}"
    except Slow:
        return f"failed: more than {seconds} s"
    except Exception as error:  # whatever else comes is what this script looks for
        return f"failed: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "taken"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=10, help="longest time an input may take (default 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, stop)
    counts: dict[str, Counter] = {}
    failures, began = [], time.process_time()
    with tempfile.TemporaryDirectory() as name:
        targets = Targets(Path(name))
        os.chdir(name)  # where folders with names like "nan" may be made
        calls = [targets.model, targets.record, targets.checkpoint, targets.graph_file, targets.parents]
        calls += [targets.arrays_file, targets.arrays, targets.flags]
        for number in range(arguments.inputs):
            call = calls[number % len(calls)]
            found = one(call, random.Random(f"{arguments.seed} {number}"), arguments.seconds)
            try:
                targets.restore()
            except AssertionError as error:
                found = f"failed: {error}"
            counts.setdefault(call.__name__, Counter())[found.partition(":")[0]] += 1
            if found.startswith("failed"):
                failures.append({"number": number, "target": call.__name__, "what": found[:500]})
                print(f"input {number} ({call.__name__}) {found[:300]}", file=sys.stderr)
    cpu_s = time.process_time() - began
    for name, counted in counts.items():
        print(f"{name:12} {counted['taken']:6} taken {counted['refused']:6} refused {counted['failed']:4} failed")
    print(f"{arguments.inputs} inputs, seed {arguments.seed}, {len(failures)} failures, {cpu_s:.0f} CPU s")
    if arguments.out:
        content = {"inputs": arguments.inputs, "seed": arguments.seed, "cpu_s": cpu_s, "failures": failures}
        arguments.out.write_text(json.dumps({**content, "counts": counts}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
