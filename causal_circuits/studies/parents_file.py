"""The file that --parents names: a graph as a JSON list."""

from pathlib import Path
from typing import Any

from causal_circuits.storage import read_json


def read_parents_file(path: Path, form: str) -> Any:
    """What a file of parents holds.

    Args:
        path: of the file.
        form: what it should hold, for the error.

    Raises:
        ValueError: it cannot be read, or is no JSON; in one line.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise ValueError(f"--parents must name a readable file: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--parents must name a JSON file with {form}: {error}") from error
