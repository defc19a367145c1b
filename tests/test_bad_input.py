"""Damaged files, odd arguments and bad flags, drawn by hypothesis: taken for what they are, or refused in one line."""

import contextlib
import io
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from assertions import unchecked_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from interrupted import CONFIG, EVERY_STEP, TASK, assert_same_end, assert_same_weights, new_model, stop_at

import causal_circuits as cc
from causal_circuits import cli, running, studies
from causal_circuits.storage import read_json, read_tensors

BATCH = TASK.sample(40, seed=1)
MANY = settings(max_examples=25, suppress_health_check=list(HealthCheck))


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the ValueError or OSError that it raises, which must be one line."""
    with unchecked_types(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged checkpoint is skipped with a warning
        try:
            return call()
        except (ValueError, OSError) as error:
            refusal = error
    assert "\n" not in str(refusal).strip()
    return refusal


# ---- damaged files

NOT_OURS = [b"", b"null", b"\xff\xfe", b"[1e999]", b"NaN", b"[" * 100_000, b"[" * 900 + b"]" * 900, b'{"a":' * 9000]
NOT_OURS += [(2**62).to_bytes(8, "little") + b"{}", b"\x93NUMPY\x01\x00", bytes(400)]
KINDS = ["truncated", "altered", "longer", "shorter", "gone", "something else"]
DAMAGE = st.tuples(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.integers(1, 255))


def damage(path: Path, kind: str, where: float, number: int) -> None:
    """Damage a file at a share of its length."""
    content = path.read_bytes()
    at = int(where * len(content))
    before, after = content[:at], content[at:]
    changed = {
        "truncated": before,
        "altered": before + bytes(byte ^ number for byte in after[:1]) + after[1:],
        "longer": before + bytes([number] * (number % 20)) + after,
        "shorter": before + after[number % 20 :],
        "something else": NOT_OURS[number % len(NOT_OURS)],
    }
    path.unlink() if kind == "gone" else path.write_bytes(changed[kind])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, cc.TrainingRecord, cc.models.HookedTransformer]:
    """A folder with a saved model, a saved record and what a training left that died; where it would have ended."""
    folder, model = tmp_path_factory.mktemp("whole"), new_model()
    record = cc.train(model, TASK, CONFIG, record=EVERY_STEP, progress=False)
    record.save(folder / "record")
    cc.save_model(model, folder / "model")
    with pytest.raises(RuntimeError):
        train_in(folder, new_model(), stop_at(28))
    return folder, record, model


def train_in(folder: Path, model: cc.models.HookedTransformer, on_record: Callable | None = None) -> cc.TrainingRecord:
    """Train, or go on, with checkpoints and a streamed record in the folder."""
    at = cc.RecordAt(EVERY_STEP.steps, folder=folder / "streamed")
    checkpoints = cc.Checkpoints(folder / "checkpoints", every=5)
    return cc.train(model, TASK, CONFIG, record=at, on_record=on_record, checkpoints=checkpoints, progress=False)


@contextlib.contextmanager
def damaged_copy(whole: Path, names: tuple[str, ...], data: st.DataObject) -> Iterator[Path]:
    """A copy of the folder in which one or two files of the named folders are damaged."""
    with TemporaryDirectory() as name:
        folder = Path(shutil.copytree(whole, Path(name) / "copy"))
        files = sorted(path for part in names for path in (folder / part).iterdir() if path.suffix != ".lock")
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
            damage(path, *data.draw(DAMAGE))
        yield folder
        assert not list(folder.rglob("*.part"))


def look_at(saved: cc.TrainingRecord | cc.models.HookedTransformer) -> object:
    return saved._repr_html_() if isinstance(saved, cc.TrainingRecord) else cc.evaluate(saved, BATCH)


@MANY
@given(data=st.data())
@pytest.mark.parametrize(("name", "load"), [("record", cc.TrainingRecord.load), ("model", cc.load_model)])
def test_a_damaged_file_is_refused_or_can_be_used(whole, name: str, load: Callable, data: st.DataObject) -> None:
    with damaged_copy(whole[0], (name,), data) as folder:
        before = {path: path.read_bytes() for path in (folder / name).iterdir()}
        outcome(lambda: look_at(load(folder / name)))
        assert {path: path.read_bytes() for path in (folder / name).iterdir()} == before


@MANY
@given(data=st.data())
def test_a_damaged_streamed_record_is_refused_or_holds_what_was_recorded(whole, data: st.DataObject) -> None:
    with damaged_copy(whole[0], ("streamed",), data) as folder:
        found = outcome(lambda: cc.TrainingRecord.load(folder / "streamed"))
        if isinstance(found, cc.TrainingRecord):
            for matrix in ("attention", "score_gradients"):
                assert torch.equal(getattr(found, matrix), getattr(whole[1], matrix)[: len(found.steps)])


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_training_goes_on_from_damaged_files_to_the_same_end(whole, data: st.DataObject) -> None:
    with damaged_copy(whole[0], ("checkpoints", "streamed"), data) as folder:
        model = new_model()
        found = outcome(lambda: train_in(folder, model))
        assert isinstance(found, cc.TrainingRecord), found
        assert_same_end(found, whole[1])
        assert_same_weights(model, whole[2])


@MANY
@given(content=st.one_of(st.binary(max_size=300), st.sampled_from(NOT_OURS), st.text().map(str.encode)))
def test_bytes_are_no_json_and_no_tensors_or_are_read(content: bytes) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(content)
        for read in (read_json, read_tensors):
            found = outcome(lambda read=read: read(path))
            assert not isinstance(found, Exception) or str(path) in str(found)


# ---- odd arguments

NUMBERS = [-3, -1, 0, 1, 2, 3, 5, 0.5, 2.0, -0.1, 1e-300, 1e308, float("nan"), float("inf")]
OTHERS = [None, True, "", "x", "3", (), [], {}, (1, 1), [-1, 0], np.int64(4), np.float32(0.5)]
ODD = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(OTHERS))
PARENTS = st.lists(st.one_of(ODD, st.integers(-1, 4), st.lists(st.integers(-1, 4), max_size=3)), max_size=6)
CALLS: dict[str, tuple[Callable[..., object], int]] = {
    "chain_graph": (cc.chain_graph, 1),
    "random_forest": (lambda n, share, seed: cc.random_forest(n, share, seed=seed), 3),
    "ngram_graph": (lambda n, order: cc.ngram_graph(n, order=order), 2),
    "InContextTask": (lambda d, alpha: cc.InContextTask(TASK.graph, d_vocab=d, alpha=alpha).sample(2), 2),
    "sample": (lambda n, seed: TASK.sample(n, seed=seed), 2),
    "disentangled_transformer": (cc.disentangled_transformer, 3),
    "Stage": (cc.Stage, 2),
    "TrainConfig": (lambda steps, size, seed: cc.TrainConfig.joint(steps, batch_size=size, seed=seed), 3),
    "RecordAt": (lambda every, last: cc.RecordAt.every(every, last), 2),
    "unigram": (lambda d, count: cc.tasks.unigram(BATCH.tokens, d, count), 2),
}


@MANY
@given(data=st.data())
@pytest.mark.parametrize("name", CALLS)
def test_odd_numbers_are_taken_or_refused_in_one_line(name: str, data: st.DataObject) -> None:
    call, n = CALLS[name]
    given_values = data.draw(st.lists(ODD, min_size=n, max_size=n))
    outcome(lambda: call(*given_values))


@MANY
@given(parents=PARENTS)
def test_parents_make_a_causal_graph_or_are_refused(parents: list) -> None:
    graph = outcome(lambda: cc.graph_from_parents(parents))
    if not isinstance(graph, Exception):
        assert all(parent < child for parent, child in graph.edges)
        assert cc.InContextTask(graph, d_vocab=3).sample(2).tokens.shape == (2, graph.number_of_nodes() - 1)


def odd_arrays() -> st.SearchStrategy:
    """Arrays, lists and tensors that are no batch of tokens, or nearly one."""
    dtypes = st.sampled_from(["int64", "int8", "uint8", "float32", "float64", "bool", "complex64", "U3"]).map(np.dtype)
    shapes = st.lists(st.sampled_from([0, 1, 2, 6, 40]), max_size=3).map(tuple)
    entries = st.sampled_from([-1, 0, 1, 2, 3])
    drawn = st.builds(lambda dtype, array: array.astype(dtype), dtypes, arrays.arrays(int, shapes, elements=entries))
    kept = st.sampled_from([BATCH.tokens, BATCH.target_probs, BATCH.target_probs * float("nan"), [[None], ["x"]]])
    tensors = drawn.filter(lambda array: array.dtype.kind in "iufb").map(torch.as_tensor)
    return st.one_of(kept, drawn, drawn.map(np.ndarray.tolist), tensors)


@MANY
@given(tokens=odd_arrays(), targets=odd_arrays(), d_vocab=st.sampled_from([None, 3, 4, 0, -1]))
def test_arrays_are_data_or_refused(tokens: object, targets: object, d_vocab: int | None) -> None:
    found = outcome(lambda: cc.recover_graph(tokens, targets, d_vocab=d_vocab))
    assert isinstance(found, Exception) or found.n_independent <= len(tokens)


# ---- bad flags

VALUES = "0 -1 1 2 3 9 20 64 0.5 2.5 1e-3 nan inf 1e400 99999999999999999999 x chain forest 1,1 0,0 ../.. /dev/null/x"
WORDS = st.sampled_from([*VALUES.split(), "", "--", "\udcff", "\x00", "9" * 5000])


def status_of(study: str, words: list[str]) -> tuple[object, str]:
    """How the study's command ends, without its work, and what it complains of or, for its help, prints."""
    complaint, printed = io.StringIO(), io.StringIO()
    stop = mock.patch.object(running, "_measured", side_effect=SystemExit(0))
    with stop, contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(printed), unchecked_types():
        try:
            status = cli.main(study, words)
        except SystemExit as ended:
            status = ended.code or 0
    return status, complaint.getvalue() or printed.getvalue()


@cache
def flags_of(study: str) -> list[str]:
    words = re.findall(r"--[\w-]+", status_of(study, ["--help"])[1])
    assert {"--out", "--seed"} <= set(words)
    return [*sorted(set(words) - {"--help"}), "--no-such-flag"]


BAD_FLAGS = {
    "causal_graph": "--graph circle|--graph chain --n-ctx 1|--alpha 0|--root-probability 2|--steps 0|--parents no.json",
    "circuit_proof": "--steps 1|--sequences 7|--formation-seeds 0|--decoy --model there|--graph circle|--model nowhere"
    "|--graph 3-gram --decoy",
    "discovery_benchmark": "--graphs circle|--methods probe|--models grown|--seeds 0|--alpha 0|--max-edges 31",
    "generalization": "--lengths 10 10|--gamma 1|--graph ring|--seeds 0|--alpha 0|--restricted dirichlet",
    "gradient_information": "--graph ring|--n-ctx 3|--sequences 5",
    "induction_head": "--n-ctx 2|--d-vocab 1|--quick|--seed -1",
    "interventional_data": "--shares 0.5 1|--shares 0|--shares 0 2|--graph pairs|--seeds 0|--d-vocab 1",
    "multi_head": "--ngram 1|--ngram 3 --parents x.json|--n-ctx 2|--heads 0,1|--heads two|--seed -1|--seeds 0|--steps 1"
    "|--parents missing.json|--parents /dev/zero",
    "reproduce_paper": "--seed 1|--figure 3|--table .|--figure 2 --seed -1",
    "selective_induction": "--lags 2|--n-ctx 3",
    "structure_learning": "--sizes 5|--level 0|--graphs 0|--parents 4|--d-vocab 1",
    "two_stage": "--lengths 20|--lengths 20 2|--steps 0 5|--graph ring|--d-vocab 1|--alpha nan",
}


@pytest.mark.parametrize(("study", "flags"), [(s, f) for s, many in BAD_FLAGS.items() for f in many.split("|")])
def test_flags_with_which_there_is_nothing_to_measure_are_refused(study: str, flags: str, tmp_path) -> None:
    status, said = status_of(study, ["--quiet", "--out", str(tmp_path), *flags.split()])
    assert (status, said.count("\n")) == (2, 1)
    if "nothing to recover" in said or "name a --figure" in said:  # no flag is wrong by itself
        return
    assert any(re.sub(r"\W", "_", word.strip("-")) in re.sub(r"\W", "_", said) for word in flags.split()), said


@settings(max_examples=3, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("study", studies.NAMES)
def test_flags_are_taken_or_refused_in_one_line(study: str, data: st.DataObject, tmp_path) -> None:
    drawn = data.draw(st.lists(st.tuples(st.sampled_from(flags_of(study)), st.lists(WORDS, max_size=2)), max_size=3))
    arguments = [word for flag, values in drawn for word in (flag, *values)]
    status, said = status_of(study, ["--quiet", "--out", str(tmp_path / "out"), *arguments])
    assert status == 0 or (status in (1, 2) and said.count("\n") == 1), said
