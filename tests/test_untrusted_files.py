"""Files of somebody else's: no endless file is read, sizes are checked, errors are one line; ruff bans unpickling."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, new_model
from safetensors.torch import save

import causal_circuits as cc
from causal_circuits.storage import read_checked, read_json, read_rows, read_tensors, write_files
from causal_circuits.studies.recover_graph.arrays import read_arrays

READERS: dict[str, Callable[[Path], object]] = {
    "json": read_json,
    "tensors": read_tensors,
    "checked": lambda path: read_checked(path, "example/1"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("leads_to", ["/dev/zero", "/", "pipe"])
def test_what_is_no_file_is_not_read(leads_to: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "endless.json"
    if leads_to == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(leads_to)
    assert_refused(lambda: read(path), str(path), "not a file")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_of_terabytes_is_not_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    """A sparse file: its size says terabytes, and no disk is full."""
    path = tmp_path / "big"
    path.touch()
    os.truncate(path, 2**42)
    assert_refused(lambda: read(path), str(path))


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD_TENSORS = {
    "a dtype that torch has not": ({"a": {**ONE, "dtype": "F4", "shape": [8]}}, bytes(4)),
    "a size beyond 64 bits": ({"a": {**ONE, "shape": [0, 2**63], "data_offsets": [0, 0]}}, b""),
    "terabytes": ({"a": {**ONE, "shape": [2**40], "data_offsets": [0, 2**42]}}, b""),
    "truncated": ({"a": ONE}, bytes(3)),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_are_none_are_refused(kind: str, tmp_path: Path) -> None:
    header, data = json.dumps(BAD_TENSORS[kind][0]).encode(), BAD_TENSORS[kind][1]
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert_refused(lambda: read_tensors(path), str(path), "not a readable safetensors file")


def test_a_model_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    """The read-out fits and is small; the attention that goes with it would take half a terabyte."""
    n_ctx = 100_000
    sizes = {"d_vocab": 2, "n_ctx": n_ctx, "n_heads": [1, 1]}
    config = {"format": "causal_circuits.model/1", "kind": "disentangled", **sizes, "dtype": "float32"}
    weights = {"unembed.W_U": torch.zeros(4 * (n_ctx + 2), 2)}
    weights |= {f"blocks.{layer}.attn.W_Q": torch.zeros(1) for layer in range(2)}
    write_files(tmp_path, {"model.json": json.dumps(config), "model.safetensors": save(weights)})
    assert_refused(lambda: cc.load_model(tmp_path), "model.json", "does not fit", "blocks.0.attn.W_Q", "400008")


def npy(array: object) -> bytes:
    np.save(buffer := io.BytesIO(), np.asarray(array))
    return buffer.getvalue()


TRUE_HEADER = npy(np.zeros((2, 4), np.float32))[:128]
BAD_ARRAYS = {
    "terabytes": TRUE_HEADER.replace(b"(2, 4), }            ", b"(1099511627776, 4), }"),
    "text": npy(["a", "b"]),
    "no header": b"\x93NUMPY",
    "brackets": TRUE_HEADER.replace(b"(2, 4)", b"(2, 4("),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_an_array_that_is_none_is_refused_and_stays_as_it_is(kind: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Mapped for writing, a file would be made as large as its header says."""
    content = BAD_ARRAYS[kind] + bytes(8)
    path = tmp_path / "attention.npy"
    path.write_bytes(content)
    assert_refused(lambda: read_rows(path, [0], for_writing=True), str(path), "damaged")
    assert path.read_bytes() == content
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("tokens.npy", content)
        archive.writestr("labels.npy", npy([0]))
    assert_refused(lambda: read_arrays(tmp_path / "data.npz"), "tokens in", "data.npz")


CHANGES = {
    "losses": torch.zeros(3, 2),
    "recorded_losses": torch.zeros(7),
    "attention": torch.zeros(3, 6),
    "score_gradients": torch.zeros(2, 2, 2, 6, 6),
    "weight_gradients": torch.zeros(3, 2, 2, 6, 6).bool(),
    "seconds": "x",
    "steps": ["a", 1, 2],
    "config": [],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_whose_parts_do_not_fit_is_refused(name: str, chain_task: cc.InContextTask, tmp_path: Path) -> None:
    record = cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(15, 30))
    record.save(tmp_path)
    if isinstance(CHANGES[name], torch.Tensor):
        tensors = read_tensors(tmp_path / "record.safetensors") | {name: CHANGES[name]}
        write_files(tmp_path, {"record.safetensors": save(tensors)})
    else:
        write_files(tmp_path, {"record.json": json.dumps(read_json(tmp_path / "record.json") | {name: CHANGES[name]})})
    assert_refused(lambda: cc.TrainingRecord.load(tmp_path), str(tmp_path), "a record", name)


def test_no_link_is_written_through(chain_task: cc.InContextTask, tmp_path: Path) -> None:
    """Where a link lies in the place of a file, the link is replaced; what it leads to stays."""
    victim, folder = tmp_path / "victim", tmp_path / "record"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("a.json", "a.json.part", "attention.npy"):
        (folder / name).symlink_to(victim)
    write_files(folder, {"a.json": "[1]"})
    assert read_json(folder / "a.json") == [1]
    cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(15, 30, folder=folder))
    assert not (folder / "attention.npy").is_symlink()
    assert victim.read_text() == "precious"


def test_a_film_takes_only_states_of_its_own(tmp_path: Path) -> None:
    tokens = torch.tensor([0, 1, 2, 0, 1, 2])
    cc.films.SequenceRecorder(tokens, tmp_path)(3, new_model())
    assert cc.films.SequenceRecorder(tokens, tmp_path).result().steps == (3,)
    write_files(tmp_path, {"step_000000009.safetensors": save({"divergence": torch.zeros(3)})})
    assert_refused(lambda: cc.films.SequenceRecorder(tokens, tmp_path), str(tmp_path), "another film")


def test_parents_are_not_read_from_a_device() -> None:
    assert_refused(lambda: cc.studies.causal_graph.Config(parents=Path("/dev/zero")), "/dev/zero is not a file")
