"""Files of somebody else's: sizes before allocation, nothing without an end, nothing outside the folder, never a crash.

`tests/fuzz/fuzz_inputs.py` draws thousands; here stands what it, or reading the code as an attacker would, has found.
"""

import ast
import hashlib
import io
import json
import os
import resource
import signal
import struct
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, EVERY_STEP, assert_same_end, cut_short, new_model, stop_at
from safetensors.torch import save

import causal_circuits as cc
from causal_circuits.storage import read_checked, read_json, read_tensors, write_checked, write_files
from causal_circuits.streamed import Seal, StreamedArray, read_sealed
from causal_circuits.studies.recover_graph.arrays import read_arrays
from causal_circuits.training.checkpoints import FORMAT, load_state, save_state


@contextmanager
def little(seconds: int = 20, gigabytes: int = 3):
    """Within, what waits for ever, or asks for terabytes, is interrupted (threads of torch have begun)."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("it waits")

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (gigabytes * 2**30, before[1]))
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def crafted(header: str, data: bytes = b"") -> bytes:
    """A .npy file with this header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def claiming(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


def tensors(header: dict[str, object], data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# ---- nothing is run

ROOT = Path(__file__).resolve().parent.parent
OURS = [
    path for folder in ("causal_circuits", "analyses", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]
UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def runs_what_it_reads(node: ast.AST) -> bool:
    """Whether a piece of source can make code out of a file's bytes."""
    match node:
        case ast.Import(names=names):
            return any(name.name.split(".")[0] in UNPICKLERS for name in names)
        case ast.ImportFrom(module=module):
            return (module or "").split(".")[0] in UNPICKLERS
        case ast.Call(func=ast.Name(id="eval" | "exec")):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch" | "np" | "numpy" | "pandas" | "pd"), attr=name)):
            return name in ("load", "read_pickle")
        case ast.keyword(arg="allow_pickle", value=value):
            return not (isinstance(value, ast.Constant) and value.value is False)
    return False


@pytest.mark.parametrize("source", ["import pickle", "torch.load(x)", "np.load(x)", "f(allow_pickle=True)", "eval(x)"])
def test_what_runs_a_file_is_told(source):
    assert any(map(runs_what_it_reads, ast.walk(ast.parse(source))))


def test_nothing_that_is_read_is_run():
    assert len(OURS) > 150
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not runs_what_it_reads(node), f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


# ---- sizes, and what has no end

WITHOUT_END = {"zeros": "/dev/zero", "random": "/dev/urandom", "folder": "/"}


@pytest.fixture(params=[*WITHOUT_END, "pipe"])
def endless(request, tmp_path) -> Path:
    """A path behind which there is no file."""
    path = tmp_path / "endless.json"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(WITHOUT_END[request.param])
    return path


def test_what_is_no_file_is_not_read(endless):
    with little():
        for read in (read_json, read_tensors, lambda path: read_checked(path, FORMAT)):
            assert_refused(lambda read=read: read(endless), str(endless), "not a file")
        assert_refused(lambda: read_sealed(endless, Seal(0, hashlib.sha256().hexdigest())), str(endless))


def test_parents_are_not_read_from_a_device():
    with little():
        assert_refused(lambda: cc.studies.causal_graph.Config(parents=Path("/dev/zero")), "/dev/zero is not a file")


def test_a_file_of_terabytes_is_not_read(tmp_path):
    """A sparse file: its size says terabytes, and no disk is full."""
    cc.save_model(new_model(), tmp_path / "model")
    for path, read in (
        (tmp_path / "big.json", read_json),
        (tmp_path / "big.safetensors", read_tensors),
        (tmp_path / "model" / "model.safetensors", lambda path: cc.load_model(path.parent)),
    ):
        path.touch()
        os.truncate(path, 2**42)
        with little():
            assert_refused(lambda path=path, read=read: read(path), str(path), "longer than", "4,398,046,511,104")


def test_json_is_read_to_a_hundred_levels(tmp_path):
    def levels(n: int) -> Path:
        return write_files(tmp_path, {"deep.json": "[" * n + "]" * n}) / "deep.json"

    assert read_json(levels(100)) != []
    for n in (101, 900, 100_000):
        assert_refused(lambda n=n: read_json(levels(n)), "deep.json")


def test_deep_json_under_a_fitting_checksum_is_refused(tmp_path):
    deep = "[" * 400 + "]" * 400
    head = json.loads(f'{{"format": "{FORMAT}", "identity": {deep}}}')
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
    path = write_files(tmp_path, {"step_1.json": json.dumps({**head, "own sha256": digest})}) / "step_1.json"
    assert_refused(lambda: read_checked(path, FORMAT), "nested deeper")


# ---- headers that claim what is not there

CLAIMS = {
    "terabytes": claiming("(1099511627776, 2)"),
    "more than can be counted": claiming(f"({10**30}, 2)"),
    "a negative size": claiming("(-1, 2)"),
    "truth for a number": claiming("(True,)"),
    "no row": claiming("()"),
    "objects": claiming("(2,)", "'|O'"),
    "text without length": claiming(f"({10**18},)", "'S0'"),
    "nothing": claiming(f"({10**18},)", "[]"),
    "half a dtype": claiming("(2,)", "('<f4',)"),
    "a sum": "1" + "+1j" * 3000,
    "minus minus": "-" * 9000 + "1",
    "brackets": "(" * 9000,
    "an unhashable key": "{{}: 1}",
    "code": "__import__('os').mkdir('harm')",
}


@pytest.mark.parametrize("sealed", [0, None], ids=["nothing sealed", "all sealed"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_that_lies_is_refused_and_the_file_stays_as_it_is(tmp_path, monkeypatch, claim, sealed):
    """Mapped for writing, a file would be made as large as its header says, and the disk be full."""
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "attention.npy", crafted(CLAIMS[claim], bytes(8))
    path.write_bytes(content)
    n = len(content) if sealed is None else sealed
    seal = Seal(n, hashlib.sha256(content[:n]).hexdigest())
    with little(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own words on what is no Python
        assert_refused(lambda: read_sealed(path, seal), str(path), "damaged")
        assert_refused(lambda: StreamedArray.reopen(path, seal, 1), str(path), "damaged")
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == ["attention.npy"]


def test_a_seal_must_be_that_of_the_rows(tmp_path):
    path = tmp_path / "a.npy"
    array = StreamedArray.new(path, (5, 2), np.dtype("float32"))
    for row in range(3):
        array.append(np.float32([row, row]))
    seal = array.seal()
    again = StreamedArray.reopen(path, seal, 3)
    again.append(np.float32([3, 3]))
    assert read_sealed(path, again.seal())[:4, 0].tolist() == [0, 1, 2, 3]
    for n_rows in (-1, 0, 2, 4, 6):
        assert_refused(lambda n_rows=n_rows: StreamedArray.reopen(path, seal, n_rows), "seal", f"{n_rows} rows")
    for n in (-5, None, "x", 2.0, True):
        assert_refused(lambda n=n: read_sealed(path, Seal(n, seal.sha256)), str(path), "seal", repr(n))


def bad_tensors() -> dict[str, bytes]:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "a dtype that torch has not": tensors({"a": {**one, "dtype": "F4", "shape": [8]}}, bytes(4)),
        "a size beyond 64 bits": tensors({"a": {**one, "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        "strides beyond 64 bits": tensors({"a": {**one, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        "terabytes": tensors({"a": {**one, "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "a header of terabytes": (2**42).to_bytes(8, "little") + b"{}",
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", bad_tensors())
def test_tensors_that_are_none_are_refused(tmp_path, kind):
    path = write_files(tmp_path, {"a.safetensors": bad_tensors()[kind]}) / "a.safetensors"
    with little():
        assert_refused(lambda: read_tensors(path), str(path), "not a readable safetensors file")


def test_a_model_larger_than_its_weights_is_not_built(tmp_path):
    """The read-out fits and is small; the attention that goes with it would take half a terabyte."""
    n_ctx = 100_000
    sizes = {"d_vocab": 2, "n_ctx": n_ctx, "n_heads": [1, 1]}
    config = {"format": "causal_circuits.model/1", "kind": "disentangled", **sizes, "dtype": "float32"}
    weights = {"unembed.W_U": torch.zeros(4 * (n_ctx + 2), 2)}
    weights |= {f"blocks.{layer}.attn.W_Q": torch.zeros(1) for layer in range(2)}
    write_files(tmp_path, {"model.json": json.dumps(config), "model.safetensors": save(weights)})
    with little():
        assert_refused(lambda: cc.load_model(tmp_path), "model.json", "does not fit", "blocks.0.attn.W_Q", "400008")
    sizes["n_heads"] = [1] * 100_000
    write_files(tmp_path, {"model.json": json.dumps({**config, **sizes})})
    with little():
        assert_refused(lambda: cc.load_model(tmp_path), "100000 layers", "3 tensors")


# ---- data files of recover_graph.py


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members under one name
        for name, content in members:
            file.writestr(name, content)
    return path


def npy(array: object) -> bytes:
    np.save(buffer := io.BytesIO(), np.asarray(array))
    return buffer.getvalue()


def test_the_member_that_is_checked_is_the_one_that_is_read(tmp_path):
    """`numpy.load` prefers a member "tokens" to "tokens.npy": checking the one and reading the other was a way past."""
    tokens, labels = npy(np.zeros((3, 4), int)), npy([0, 1, 2])
    members = [("tokens", b"raw"), ("tokens.npy", tokens), ("labels.npy", labels)]
    assert read_arrays(archive(tmp_path / "a.npz", members))["tokens"].shape == (3, 4)
    members[:2] = members[1::-1]
    assert_refused(lambda: read_arrays(archive(tmp_path / "b.npz", members)), "tokens in", "not a readable .npy array")


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim != "no row"])  # that one is read, then refused
def test_data_that_claim_what_is_not_there_are_refused(tmp_path, claim):
    members = [("tokens.npy", crafted(CLAIMS[claim], bytes(8))), ("labels.npy", npy([0]))]
    with little(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_refused(lambda: read_arrays(archive(tmp_path / "a.npz", members)), "a.npz")


@pytest.mark.parametrize("kind", bad_tensors())
def test_data_in_tensors_that_are_none_are_refused(tmp_path, kind):
    path = tmp_path / "data.safetensors"
    path.write_bytes(bad_tensors()[kind].replace(b'"a"', b'"tokens"'))
    with little():
        assert_refused(lambda: read_arrays(path), str(path))


# ---- nothing outside its folder


@pytest.mark.parametrize("name", ["../out.json", "/etc/out.json", "a/b.json", "", ".", ".."])
def test_a_file_is_written_under_a_plain_name(tmp_path, name):
    assert_refused(lambda: write_files(tmp_path / "in", {"good.json": "1", name: "2"}), "plain name", repr(name))
    assert list(tmp_path.rglob("*.json")) == []


def test_no_link_is_written_through(chain_task, tmp_path):
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


def test_a_record_does_not_go_on_through_a_link(chain_task, tmp_path):
    """The checkpoint fits, the array is there - somewhere else."""
    expected = cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(3, 30))
    at, kept = cc.RecordAt.every(3, 30, folder=tmp_path / "record"), cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=at, on_record=stop_at(28), checkpoints=kept)
    array, elsewhere = tmp_path / "record" / "attention.npy", tmp_path / "elsewhere.npy"
    array.rename(elsewhere)
    array.symlink_to(elsewhere)
    content = elsewhere.read_bytes()
    with pytest.warns(UserWarning, match="is a link: it would be written to outside its folder"):
        found = cc.train(new_model(), chain_task, CONFIG, record=at, checkpoints=kept)
    assert_same_end(found, expected)
    assert elsewhere.read_bytes() == content


def test_a_record_names_no_file_but_its_own(chain_task, tmp_path):
    cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(15, 30, folder=tmp_path / "record"))
    index = tmp_path / "record" / "streamed.json"
    head, small = read_checked(index, "causal_circuits.streamed/2")
    for name in ("../elsewhere", "/etc/hostname", "elsewhere"):
        seals = {name: head["seals"]["attention"]}
        write_checked(index.parent, "streamed", {**head, "seals": seals}, small)
        assert_refused(lambda: cc.TrainingRecord.load(index.parent), "streams", repr(name))


# ---- somebody else's content under checksums that fit


@pytest.fixture
def kept(chain_task, tmp_path) -> Path:
    """A checkpoint of step 24 with a record in memory; Adam and AdamW remember moments."""
    cut_short(chain_task, tmp_path, every=24)
    return tmp_path


FORGED_HEADS = {"step": [None, "24", -1, True, 2.0, 31], "seconds": [None, "1", []], "identity": [None, {}, [[[]]]]}
FORGED_TENSORS = {
    "losses": [torch.zeros(3, 1).double(), torch.zeros(24, 1), torch.zeros(24, 1).bfloat16()],
    "record.0.steps": [torch.zeros(6), torch.zeros(60, dtype=torch.int64), torch.tensor(0)],
    "record.0.losses": [torch.zeros(5).double(), torch.zeros(6, 1).double()],
    "record.0.attention": [torch.zeros(5, 2, 2, 6, 6), torch.zeros(6, 2, 2, 6, 6).bool(), torch.zeros(0, 2**40)],
    "record.0.x": [torch.zeros(3)],
    "record.0.attention.sha256": [torch.zeros(32, dtype=torch.uint8)],
}


@pytest.mark.parametrize("name", [*FORGED_HEADS, *FORGED_TENSORS])
def test_a_forged_checkpoint_is_named_and_not_used(chain_task, kept, name):
    path = kept / "step_000000024.json"
    head, whole = read_checked(path, FORMAT)
    head = {key: value for key, value in head.items() if key not in ("size", "sha256")}
    changes = [({name: value}, {}) for value in FORGED_HEADS.get(name, [])]
    changes += [({}, {name: value}) for value in FORGED_TENSORS.get(name, [])]
    for in_head, in_tensors in changes:
        for later in kept.glob("step_000000030.*"):  # the end of the run before
            later.unlink()
        write_checked(kept, path.stem, {**head, **in_head}, {**whole, **in_tensors})
        train = {"record": EVERY_STEP, "checkpoints": cc.Checkpoints(kept, every=30)}
        if name == "identity":
            assert_refused(lambda train=train: cc.train(new_model(), chain_task, CONFIG, **train), "of another run")
        else:
            with little(), pytest.warns(UserWarning, match="damaged.*passed over"):
                cc.train(new_model(), chain_task, CONFIG, **train)


def test_moments_of_other_sizes_are_refused(chain_task, kept):
    path = kept / "step_000000024.json"
    head, whole = read_checked(path, FORMAT)
    head = {key: value for key, value in head.items() if key not in ("size", "sha256")}
    moment = next(name for name in whole if name.endswith(".mean"))
    for value in (torch.zeros(3), whole[moment].to(torch.int64)):
        write_checked(kept, path.stem, head, {**whole, moment: value})
        train = {"record": EVERY_STEP, "checkpoints": cc.Checkpoints(kept, every=30)}
        assert_refused(
            lambda train=train: cc.train(new_model(), chain_task, CONFIG, **train), "optimiser", "mean", "does not fit"
        )


def test_a_forged_record_is_refused(chain_task, tmp_path):
    record = cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(15, 30))
    for name, value in {
        "losses": torch.zeros(3, 2),
        "recorded_losses": torch.zeros(7),
        "attention": torch.zeros(3, 6),
        "score_gradients": torch.zeros(2, 2, 2, 6, 6),
        "weight_gradients": torch.zeros(3, 2, 2, 6, 6).bool(),
    }.items():
        record.save(tmp_path)
        write_files(
            tmp_path, {"record.safetensors": save({**read_tensors(tmp_path / "record.safetensors"), name: value})}
        )
        assert_refused(lambda: cc.TrainingRecord.load(tmp_path), str(tmp_path), "a record", name)
    for name, value in {
        "seconds": "x",
        "steps": ["a", 1, 2],
        "path": None,
        "config": [],
        "sequences_per_s": {},
    }.items():
        record.save(tmp_path)
        plain = read_json(tmp_path / "record.json")
        write_files(tmp_path, {"record.json": json.dumps({**plain, name: value})})
        assert_refused(lambda: cc.TrainingRecord.load(tmp_path), str(tmp_path), "a record", name)


def test_a_film_takes_only_states_of_its_own(tmp_path):
    tokens = torch.tensor([0, 1, 2, 0, 1, 2])
    film = cc.films.SequenceFilm(tokens, tmp_path)
    film(0, new_model())
    film(3, new_model())
    assert cc.films.SequenceFilm(tokens, tmp_path).result().steps == (0, 3)
    for name, content in {
        "step_000000009": save({"divergence": torch.zeros(3)}),
        "step_000000010": save({"attention": torch.zeros(1, 4, 4), "heads": torch.zeros(1, 2, dtype=torch.int64)}),
        "step_x": (tmp_path / "step_000000003.safetensors").read_bytes(),
    }.items():
        path = write_files(tmp_path, {f"{name}.safetensors": content}) / f"{name}.safetensors"
        assert_refused(lambda: cc.films.SequenceFilm(tokens, tmp_path), str(path), "no state of this film")
        path.unlink()


# ---- checkpoints that were passed over


def test_a_checkpoint_that_was_passed_over_takes_no_place_of_a_whole_one(tmp_path):
    """It lay at a later step: of the two that are kept, it was one, and the other the only whole one."""
    task, model = {"members": []}, cc.training.checkpoints.State
    for step in (4, 8):
        save_state(tmp_path, task, model(step, 1.0, {"x": torch.tensor(step)}))
    os.truncate(tmp_path / "step_000000008.json", 9)
    for step in (5, 6):
        save_state(tmp_path, task, model(step, 1.0, {"x": torch.tensor(step)}))
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["step_000000005.json", "step_000000006.json"]
    os.truncate(tmp_path / "step_000000006.safetensors", 3)
    with pytest.warns(UserWarning, match="step_000000006"):
        assert load_state(tmp_path, None).step == 5
