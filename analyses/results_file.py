"""What every script writes down: the command, versions, and results.json, whole or not at all. Not a script."""

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from command_line import CLAIMED

import causal_circuits as cc


def say(quiet: bool) -> Callable[[str], None]:
    """A function that prints progress on stderr, or nothing."""
    return (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))


def result_header(program: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The command, its flags and the versions of everything that decides a number."""
    return {"command": command_of(program), "config": flag_values(arguments), "versions": versions()}


def command_of(program: str) -> str:
    """What makes these results again."""
    return f"python analyses/{program} {shlex.join(sys.argv[1:])}".strip()


def flag_values(arguments: argparse.Namespace) -> dict[str, object]:
    """Every flag as a JSON value."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}


def check_writable(folder: Path) -> None:
    """Make the folder if it is missing; a ValueError if what a script writes cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be written to: {folder}: {error.strerror}") from error
    in_the_way = [name for name in ("results.json", "report.html") if (folder / name).is_dir()]
    in_the_way += ["figures"] if (folder / "figures").is_file() else []
    if in_the_way:
        raise ValueError(
            f"--out must have room for results.json, report.html and the folder figures: {folder / in_the_way[0]} is "
            "in the way; move it, or choose another --out"
        )


def claim_folder(folder: Path) -> None:
    """`check_writable`, and a ValueError if another process is at work in the folder; it is the script's to its end."""
    check_writable(folder)
    CLAIMED.enter_context(cc.locks.exclusive_lock(folder))


def begin(arguments: argparse.Namespace) -> None:
    """Claim --out."""
    claim_folder(arguments.out)


def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    found = {"python": platform.python_version(), "causal_circuits": cc.__version__}
    for package in ("torch", "transformer-lens", "numpy", "networkx", "circuitsvis", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def remove_ours(folder: Path, *patterns: str) -> None:
    """Remove what a script kept in a folder until it was done; what is not ours, or behind a link, stays."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def write_results(content: dict[str, object], out: Path) -> None:
    """results.json, the whole new one or the old one: never half of it."""
    text = json.dumps(json_values(content), indent=2, allow_nan=False) + "\n"
    cc.storage.write_files(out, {"results.json": text})


def json_values(value: object) -> object:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
