"""Claim: the largest entries of layer 1's first gradient are the edges; it follows the information that is its limit.

For every graph, d_vocab, alpha and n_ctx: minus the gradient of the reduced model at its start, measured on fresh
sequences, beside two predictions - g, the paper's chi-squared information in the limit of long contexts, and G, the
expectation of the gradient itself at this very context length, computed without sequences (`finite_context_gradient`).
Measurement against G checks two computations of one thing; how far g is from both says what a short context does to the
information. Then the same against the number of sequences, the row maxima of random
forests, and a training run: how the agreement evolves and in which order edges form.

    python analyses/gradient_information.py               # the whole table, some five minutes on one core
    python analyses/gradient_information.py --quick       # one minute, small sizes
    python analyses/gradient_information.py --n-ctx 100 --alpha 1 --d-vocab 3 5 --sequences 50000

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json and
figures/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from command_line import OneLineParser, exit_status

GRAPHS = ("chain", "pairs", "forest")


def make_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", nargs="+", metavar="NAME", help=f"any of {', '.join(GRAPHS)} (default all)")
    parser.add_argument("--d-vocab", nargs="+", type=int, metavar="S", help="numbers of tokens (default 3 5)")
    parser.add_argument("--alpha", nargs="+", type=float, help="concentrations of the kernels (default 0.1 1)")
    parser.add_argument("--n-ctx", nargs="+", type=int, metavar="T", help="context lengths (default 20 60 100 200)")
    parser.add_argument("--sequences", type=int, metavar="N", help="a setting (default 100000)")
    parser.add_argument(
        "--forests", type=int, metavar="N", help="random forests whose row maxima to check (default 50)"
    )
    parser.add_argument("--quick", action="store_true", help="small defaults for all of these, for a first look")
    parser.add_argument("--seed", type=int, default=0, help="fixes graphs, data and every number (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/gradient_information"), metavar="DIR", help="default %(default)s"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser


def fill_defaults(arguments: argparse.Namespace) -> None:
    """What was not asked for, by --quick or not; a ValueError for what cannot be."""
    whole = {"graph": GRAPHS, "d_vocab": (3, 5), "alpha": (0.1, 1.0), "n_ctx": (20, 60, 100, 200)}
    small = {"graph": ("chain", "forest"), "d_vocab": (3,), "alpha": (0.1, 1.0), "n_ctx": (10, 20)}
    counts = {"sequences": 10_000, "forests": 4} if arguments.quick else {"sequences": 100_000, "forests": 50}
    defaults: dict[str, Any] = (small if arguments.quick else whole) | counts
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    unknown = [name for name in arguments.graph if name not in GRAPHS]
    if unknown:
        raise ValueError(f"--graph must be any of {', '.join(GRAPHS)}: got {unknown[0]!r}")
    for flag, least in (("n_ctx", 4), ("d_vocab", 2)):
        if min(getattr(arguments, flag)) < least:
            raise ValueError(
                f"--{flag.replace('_', '-')} must be at least {least}: got {min(getattr(arguments, flag))}"
            )
    if arguments.sequences < 100 or arguments.forests < 0 or arguments.seed < 0:
        raise ValueError(
            "--sequences must be at least 100, --forests and --seed 0 or more: "
            f"got {arguments.sequences}, {arguments.forests}, {arguments.seed}"
        )


def main() -> int:
    """Run from the command line."""
    parser = make_parser()
    arguments = parser.parse_args()
    try:
        fill_defaults(arguments)
        from agreement import measure_all  # after parsing: torch takes seconds to import
        from agreement_page import draw_figures, table, write_page
        from going_on import Units
        from results_file import begin, result_header, say, write_results

        begin(arguments)
        units = Units.of(parser.prog, arguments)
        measured = measure_all(arguments, units, say(arguments.quiet))
    except ValueError as error:
        parser.error(str(error))
    draw_figures(measured, arguments.out / "figures")
    content = result_header(parser.prog, arguments) | measured.as_json()
    content["timing"] = {"wall_s": units.wall_s()}
    write_results(content, arguments.out)
    write_page(measured, content, arguments.out)
    units.finish()
    print(table(measured, content, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
