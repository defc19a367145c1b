"""The scripts' own files and flags: units of long analyses, data and parents files, results, command lines."""

import contextlib
import importlib
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from damage import crafted_npy, crafted_tensors, damage_file, damaged_array, damaged_text, forge
from targets import Targets

import causal_circuits as cc

SCRIPTS = (
    "causal_graph",
    "circuit_proof",
    "discovery_benchmark",
    "generalization",
    "gradient_information",
    "induction_head",
    "multi_head",
    "recover_graph",
    "reproduce_paper",
    "structure_learning",
    "two_stage",
    "unlearned_edges",
)
# Where the work of a script begins: up to there its flags are checked.
BEGINS = {
    "recover_and_prove": ("run",),
    "prove_one": ("run",),
    "multi_head_findings": ("find",),
    "reproduce_paper": ("run_figures",),
    "unlearned_edges": ("trainings",),
    "agreement": ("backward_pass_difference",),
    "going_on": ("Units.made",),
    "recover_graph": ("results",),
}
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "9",
    "20",
    "64",
    "300",
    "0.5",
    "2.5",
    "1e-3",
    "99999999999999999999",
    "nan",
    "1e400",
]
VALUES = ["0", "-1", "3", "nan", "inf", "1e400", "", "x", "9", "2", "99999999999999999999", "chain", "\udcff", "--"]
VALUES += ["/dev/null", "/dev/null/x", "/dev/zero", "0.5", "64", "1,1", "0,0", "9" * 5000, "../..", "forest", "\x00"]


def begin(*given: object, **named: object) -> None:
    """In place of the work."""
    raise SystemExit(0)


class ScriptTargets(Targets):
    """Those of the package, and those of the scripts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from going_on import Units

        self.units, self.run = Units, {"program": "a.py", "lengths": [1, 2], "versions": {"torch": "2"}}
        self.made = {
            "one": self.results(1),
            "two": [cc.compare_graphs(cc.chain_graph(4), cc.pairs_graph(4)), (1.5, None, {(0, 1): [True]})],
        }
        units = Units(folder / "units", self.run)
        for name, value in self.made.items():
            units.made(name, lambda value=value: value)
        self.write_figure(folder / "figure_9")
        self.begin()

    def results(self, n: int) -> dict[str, Any]:
        """Numbers, text, tensors, dataclasses, as deep as the scripts keep them."""
        numbers = torch.arange(6, dtype=torch.float64).reshape(2, 3) * n
        return {"rows": [{"loss": 0.1 * n, "name": "x"}], "weights": numbers, "edges": {(0, 1): self.task.sample(2)}}

    def write_figure(self, folder: Path) -> None:
        """A results.json as reproduce_paper.py leaves it."""
        row = {"what": "parents", "ours": "8 of 8", "theirs": "7 of 8", "verdict": "improves"}
        graph = {"graph": 0, "edges": 8, "recovered": 8, "false_edges": 0, "loss": 0.6, "edge_posterior": 0.6}
        graph |= {"recovered_attention_alone": 8, "false_edges_attention_alone": 2}
        graph |= {f"{name}_attention": 0.9 for name in ("mean_parent", "mean_block", "recorded_block")}
        edge = {"graph": 0, "parent": 1, "child": 2, "block": 0.4, "attention": 0.4, "parent_is_root": True}
        pooled = {f"unlearned_{metric}": [{**edge, "earlier_children": [1]}] for metric in ("block", "attention")}
        whole = {"figure": "9", "faithful": True, "quick": False, "complete": True, "minutes": 1.0, "cpu_s": 9.0}
        whole |= {"seed": 0, "command": "python", "row": row, "graphs": [graph], "pooled": pooled}
        cc.storage.write_files(folder, {"results.json": json.dumps(whole)})

    # ---- files

    def unit(self, chance: random.Random) -> None:
        """Damaged units, also of run.json: whatever is damaged is made again, and equal."""
        self.damage("units", chance)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            units = self.units(self.folder / "units", self.run)
            for name, value in self.made.items():
                if not same(units.made(name, lambda value=value: value), value):
                    raise AssertionError(f"unit {name} came back as something else")
        refuse_lines(said.getvalue(), 2)

    def forged_unit(self, chance: random.Random) -> None:
        """Units of someone else's, with checksums that fit: taken, or made again."""
        forge(self.file_of("units", chance, ".json"), chance)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            units = self.units(self.folder / "units", self.run)
            for name, value in self.made.items():
                units.made(name, lambda value=value: value)
        refuse_lines(said.getvalue(), 3)
        if chance.random() < 0.2:
            units.finish()

    def kept_values(self, chance: random.Random) -> None:
        """JSON values that no result was taken apart into."""
        from kept_values import put_together, taken_apart

        tensors: dict[str, torch.Tensor] = {}
        values = taken_apart(chance.choice(list(self.made.values())), tensors)
        text = damaged_text(json.dumps(values), chance)
        for name in (
            "os:stat_result",
            "subprocess:Popen",
            "pathlib:Path",
            "builtins:eval",
            "causal_circuits.storage:os",
        ):
            if chance.random() < 0.02:
                text = json.dumps({"class": name, "fields": {"args": "true"}}).encode()
        path = cc.storage.write_files(self.folder, {"values.json": text}) / "values.json"
        put_together(cc.storage.read_json(path), tensors)

    def progress(self, chance: random.Random) -> None:
        """The measurements of a long training of reproduce_paper.py."""
        from paper_training import PROGRESS, Progress

        kept = Progress(self.folder / "progress")
        kept.add(4, {"loss": 0.5})
        path = self.folder / "progress" / f"{PROGRESS}.json"
        if chance.random() < 0.5:
            forge(path, chance)
        else:
            damage_file(path, path.read_bytes(), chance)
        Progress(self.folder / "progress").spent()

    def figure_results(self, chance: random.Random) -> None:
        """A results.json that the table and the page of reproduce_paper.py are made from."""
        from paper_table import write_table

        path = self.folder / "figure_9" / "results.json"
        damage_file(path, self.good[path], chance)
        write_table(self.folder, self.folder / "table.md")

    def parents_file(self, chance: random.Random) -> None:
        """--parents FILE, of both kinds of script."""
        import causal_graph
        import multi_head

        path = self.folder / "parents.json"
        path.write_text(chance.choice(["[-1, 0, 1, 2]", "[null, 0, null, 2]", "[[], [0], [0, 1]]"]))
        damage_file(path, path.read_bytes(), chance)
        parents = chance.choice([causal_graph, multi_head]).read_parents(path)
        cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3).sample(2)

    def arrays_file(self, chance: random.Random) -> None:
        """The data file of recover_graph.py."""
        from user_arrays import read_arrays

        batch = self.task.sample(6, seed=chance.randrange(9))
        arrays = {"tokens": batch.tokens.numpy(), "target_probs": batch.target_probs.numpy()}
        if chance.random() < 0.25:
            content = cc.storage.tensor_bytes({name: torch.from_numpy(value) for name, value in arrays.items()})
            path, content = self.folder / "data.safetensors", crafted_tensors(content, chance)
        else:
            path, content = self.folder / "data.npz", self.archive(arrays, chance)
        path.write_bytes(content)
        if chance.random() < 0.7:
            damage_file(path, content, chance)
        if any(type(value) not in (np.ndarray, torch.Tensor) for value in read_arrays(path).values()):
            raise AssertionError("something else than an array was taken")

    def archive(self, arrays: dict[str, np.ndarray], chance: random.Random) -> bytes:
        """An .npz file: one array replaced, perhaps one missing, perhaps members that are no arrays or named alike."""
        arrays[chance.choice(["tokens", "target_probs", "labels", "x"])] = np.asarray(damaged_array(chance))
        if chance.random() < 0.5:
            arrays.pop(chance.choice(list(arrays)))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        if chance.random() < 0.5:
            return buffer.getvalue()
        whole, buffer = zipfile.ZipFile(buffer), io.BytesIO()
        with zipfile.ZipFile(buffer, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for name in chance.sample(whole.namelist(), len(whole.namelist())):
                if chance.random() < 0.3:
                    archive.writestr(name.removesuffix(".npy"), chance.choice([b"raw", crafted_npy(chance)]))
                archive.writestr(name, chance.choice([whole.read(name), crafted_npy(chance)]))
        return buffer.getvalue()

    # ---- flags

    def flags(self, chance: random.Random) -> None:
        """The command lines of the scripts, up to where work would begin."""
        script = chance.choice(SCRIPTS)
        words = []
        if script == "recover_graph" and chance.random() < 0.8:
            words, batch = [str(self.folder / "data.npz")], self.task.sample(60)
            np.savez(words[0], tokens=batch.tokens, target_probs=batch.target_probs)
        words += ["--quiet", "--out", str(self.folder / chance.choice(["out", "units", "model"]))]
        names = flag_names(script)
        values = [*VALUES, *(str(self.folder / name) for name in ("model/model.json", "model", "record"))]
        for _ in range(chance.choice([1, 1, 2, 3, 5])):
            n, drawn = chance.choice([0, 1, 1, 1, 1, 1, 2]), NUMBERS if chance.random() < 0.7 else values
            words += [chance.choice(names), *(chance.choice(drawn) for _ in range(n))]
        status, said = self.status_of(script, words)
        if status not in (0, 1, 2) or (status and said.count("\n") != 1) or "Traceback" in said:
            raise AssertionError(f"{script} {words}: status {status}, {said!r}")
        if status:
            raise ValueError(said.strip())

    def status_of(self, script: str, words: list[str]) -> tuple[object, str]:
        """The exit status of a script, and what it says on stderr."""
        from command_line import exit_status

        error = io.StringIO()
        with given([f"{script}.py", *words]), contextlib.redirect_stderr(error), without_work():
            try:
                return exit_status(importlib.import_module(script).main), error.getvalue()
            except SystemExit as ended:
                return ended.code or 0, error.getvalue()

    def calls(self) -> list[Callable[[random.Random], None]]:
        """Every target."""
        own = [self.unit, self.forged_unit, self.kept_values, self.progress, self.figure_results]
        return [*super().calls(), *own, self.parents_file, self.arrays_file, self.flags]


def flag_names(script: str) -> list[str]:
    """Every flag that --help of a script names, and one that there is not."""
    with given([script, "--help"]) as said, contextlib.suppress(SystemExit):
        importlib.import_module(script).main()
    words = said.getvalue().replace(",", " ").replace("[", " ").replace("]", " ").split()
    return [*sorted({word for word in words if word.startswith("--") and word[2:3].isalpha()} - {"--help"}), "--no"]


@contextlib.contextmanager
def given(words: list[str]) -> Iterator[io.StringIO]:
    """Within, these are the command line; what is printed is caught."""
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(io.StringIO()) as said:
        yield said


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """Within, a script ends with status 0 where its work would begin."""
    with contextlib.ExitStack() as stack:
        for module, names in BEGINS.items():
            for name in names:
                owner: Any = importlib.import_module(module)
                *parents, last = name.split(".")
                for parent in parents:
                    owner = getattr(owner, parent)
                stack.enter_context(mock.patch.object(owner, last, begin))
        yield


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and same(vars(one), vars(other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def refuse_lines(said: str, most: int) -> None:
    """Raise if more was said than a line for each damaged file."""
    if said.count("\n") > most or "Traceback" in said:
        raise AssertionError(f"said too much: {said!r}")
