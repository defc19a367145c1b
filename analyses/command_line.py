"""The command line that the analyses share; imports nothing heavy, so that --help and bad flags answer at once.

Not a script.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

FIGURE_9 = Path(__file__).parent.parent / "causal_circuits" / "studies" / "figure9_graphs.json"
BEGAN = time.perf_counter()  # before the imports that take seconds: the wall time reported is the user's
CLAIMED = ExitStack()  # folders that no other process may write into (`results_file.claim_folder`) while a script runs


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        one_line = " ".join(message.split())
        sys.stderr.write(f"{self.prog}: error: {one_line} (see --help)\n")
        sys.exit(2)


def base_parser(description: str, name: str) -> OneLineParser:
    """The flags that every script has."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="fixes data, evaluation and every number (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out") / name, metavar="DIR", help=f"default out/{name}")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser


def make_parser(description: str, name: str, d_vocab: int, n_ctx: int | None, steps: int = 2000) -> OneLineParser:
    """The flags of the scripts that train one model on one graph."""
    parser = base_parser(description, name)
    shown = f"default {n_ctx}" if n_ctx else "default 20, or what the parents file says"
    parser.add_argument(
        "--d-vocab", type=int, default=d_vocab, metavar="S", help=f"number of tokens (default {d_vocab})"
    )
    parser.add_argument(
        "--n-ctx", type=int, default=n_ctx, metavar="T", help=f"context length, query included ({shown})"
    )
    parser.add_argument("--alpha", type=float, default=0.1, help="Dirichlet concentration of the kernels (default 0.1)")
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"training steps of 1,024 fresh sequences (default {steps})"
    )
    return parser


def add_warm_start(parser: OneLineParser) -> None:
    """The flag of the scripts that train from zero unless told otherwise."""
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="write layer 2's match and the read-out in before training, so that only layer 1 is to be found: "
        "--steps 2000 is enough (default: nothing is written in)",
    )


def parse(parser: OneLineParser, quick: Mapping[str, object]) -> argparse.Namespace:
    """The flags, with smaller defaults under --quick; what the user names still counts."""
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**quick)
        arguments = parser.parse_args()
    return arguments


def exit_status(main: Callable[[], int]) -> int:
    """The status that a script ends with, and one line instead of a traceback where the world is at fault.

    130 after Ctrl-C, 2 if the checkpoints in DIR are of another run, 1 if the disk is full or a training diverged.
    Warnings (of a damaged checkpoint that is passed over) are one line each, too.
    """
    name = Path(sys.argv[0]).name
    if sys.stdout.errors == "strict":  # a path may hold what this terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def in_one_line(message: Warning | str, *where: object) -> None:
        sys.stderr.write(f"{name}: {' '.join(str(message).split())}\n")

    try:
        with CLAIMED, warnings.catch_warnings():
            warnings.showwarning = in_one_line
            return main()
    except SystemExit:  # --help and bad flags: nothing to ask torch about
        raise
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"{name}: {str(stopped) or 'interrupted'}; give the same command again to go on\n")
        return 130
    except expected_errors() as error:
        sys.stderr.write(f"{name}: error: {' '.join(str(error).split())}\n")
        return 2 if isinstance(error, ValueError) else 1


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that are no defect of ours; asked for only when there is one, for it imports torch."""
    from causal_circuits import CheckpointError, DivergenceError

    return CheckpointError, DivergenceError, OSError


def read_parents_file(path: Path, form: str) -> object:
    """What the JSON file of --parents holds; a ValueError, in one line, if it cannot be read."""
    from causal_circuits.storage import read_json  # after parsing: it imports torch

    try:
        return read_json(path)
    except OSError as error:
        raise ValueError(f"--parents must name a readable file: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--parents must name a JSON file with {form}: {error}") from error


def read_figure_9(path: Path = FIGURE_9) -> list[list[int]]:
    """The parents of the 20 forests of the paper's Figure 9 (-1: a root), n_ctx 20.

    The paper does not print them: re-derived from the seed of the authors' notebook.
    """
    return [graph["parents"] for graph in json.loads(path.read_text(encoding="utf-8"))["graphs"]]
