"""The results.json of the scripts about information: header, wall time, written atomically. Not a script."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recover_and_prove import check_writable, json_values, versions

__all__ = ["check_writable", "result_header", "say", "write_results"]


def say(quiet: bool) -> Callable[[str], None]:
    """A function that prints progress on stderr, or nothing."""
    return (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))


def result_header(program: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The command, its flags and the versions of everything that decides a number."""
    flags = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    command = f"python analyses/{program} {shlex.join(sys.argv[1:])}".strip()
    return {"command": command, "config": flags, "versions": versions()}


def write_results(out: Path, content: dict[str, Any], began: float) -> dict[str, Any]:
    """Add the wall time and write DIR/results.json so that no reader sees half of it; what was written comes back."""
    content = {**content, "timing": {"wall_s": time.perf_counter() - began}}
    partial = out / f".results.json.{os.getpid()}.part"
    partial.write_text(json.dumps(json_values(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, out / "results.json")
    return content
