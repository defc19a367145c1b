"""Claim: every experiment of the paper runs from here; each is set beside what the authors recorded.

    python analyses/reproduce_paper.py --figure 9                # our recipe: minutes
    python analyses/reproduce_paper.py --figure 9 --faithful     # the paper's optimiser, schedule, start and steps
    python analyses/reproduce_paper.py --figure all --budget 45  # stops in time and says what was done
    python analyses/reproduce_paper.py --table docs/REPRODUCTION.md   # the table of what DIR holds

2     a Markov chain in context: A1, A2 and W_U
5, 7  two parents a position: two heads share the graph
6     pairs, a random forest, a small manual graph
8     an ordinary transformer (overlapping embeddings, value matrices, MLPs) on the chain: does it beat Bayes?
9     20 random forests; our recipe was chosen on two of them, so it is judged on the other 18

Verdicts compare in pairs (the same graphs, the same sequences) with 95% intervals where the record allows it, and say
"differs" or "falls short" where the interval lies on that side.

Faithful runs go on where they stopped when the command is given again; so does the default Figure 9. DIR gets one
folder a figure, with figures/, the models and results.json (every number, command, seed, versions, times), and
report.html: all of them on one page.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import BEGAN, OneLineParser, base_parser, exit_status

if TYPE_CHECKING:
    from paper_job import Job

FIGURES = ("2", "5", "6", "7", "8", "9")


def parse_arguments() -> tuple[OneLineParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "reproduce_paper")
    parser.add_argument("--figure", metavar="N", help=f"{', '.join(FIGURES)} or all")
    parser.add_argument("--faithful", action="store_true", help="the paper's own training in place of our recipe")
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help="start no further training after so long (default: no limit)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of all figures in DIR to FILE")
    return parser, parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """A ValueError that names the rule, the value and the remedy."""
    if arguments.figure is None and arguments.table is None:
        raise ValueError(f"name a --figure ({', '.join(FIGURES)} or all), or a --table to write")
    if arguments.figure not in (None, "all", *FIGURES):
        raise ValueError(f"--figure must be one of {', '.join(FIGURES)} or all: got {arguments.figure!r}")
    if arguments.budget is not None and not 0 < arguments.budget < float("inf"):
        raise ValueError(f"--budget must be a positive number of minutes: got {arguments.budget}")
    if arguments.table is not None and arguments.table.is_dir():
        raise ValueError(f"--table must name a file: {arguments.table} is a folder")
    if arguments.seed < 0:
        raise ValueError(f"--seed must be 0 or more: got {arguments.seed}")


def wanted_figures(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What will be made; 5 and 7 are two pictures of one training."""
    if arguments.figure == "all":
        return FIGURES
    return ("5", "7") if arguments.figure in ("5", "7") else (arguments.figure,)


def claim_figures(arguments: argparse.Namespace) -> "Job":
    """The job, its figures' folders claimed: other figures may be made in the same DIR at the same time."""
    from paper_job import Job  # after parsing: torch takes seconds to import
    from results_file import claim_folder

    deadline = float("inf") if arguments.budget is None else BEGAN + 60 * arguments.budget
    job = Job(arguments.out, arguments.seed, arguments.faithful, arguments.quick, arguments.quiet, deadline=deadline)
    for figure in wanted_figures(arguments):
        claim_folder(job.folder(figure))
    return job


def run_figures(job: "Job", wanted: tuple[str, ...]) -> list[dict[str, object]]:
    """The results of the figures asked for, in order; those that the budget left no time for are missing."""
    from paper_forests import figure_9
    from paper_multi import figures_5_and_7
    from paper_ordinary import figure_8
    from paper_single import figure_2, figure_6

    makers = {"2": figure_2, "5": figures_5_and_7, "6": figure_6, "7": figures_5_and_7, "8": figure_8, "9": figure_9}
    done = []
    for make in dict.fromkeys(makers[figure] for figure in wanted):
        if time.perf_counter() >= job.deadline:
            continue
        made = make(job)
        done += made if isinstance(made, list) else [made]
    return done


def summary(done: list[dict[str, object]], arguments: argparse.Namespace) -> str:
    """The short table that ends a run."""
    lines = [
        f"figure {result['figure']}  {result['row']['verdict']}: {result['row']['ours']}  "
        f"[{result['minutes']:.1f} min, {result['cpu_s']:.0f} CPU s]"
        for result in done
    ]
    made = {result["figure"] for result in done}
    wanted = set(FIGURES) if arguments.figure == "all" else {arguments.figure}
    if wanted - made:
        lines.append(f"no time     left for figure {', '.join(sorted(wanted - made))}; give a longer --budget")
    if not all(result["complete"] for result in done):
        lines.append("unfinished  give the same command again to go on")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    try:
        check(arguments)
        from results_file import check_writable  # after parsing: torch takes seconds to import

        check_writable(arguments.out)
        if arguments.table is not None:
            check_writable(arguments.table.parent)
        job = None if arguments.figure is None else claim_figures(arguments)
    except ValueError as error:
        parser.error(str(error))
    if job is not None:
        print(summary(run_figures(job, wanted_figures(arguments)), arguments))
    from paper_page import write_page
    from paper_table import write_table

    from causal_circuits.locks import exclusive_lock

    try:
        if job is not None:
            with exclusive_lock(arguments.out, wait=True):  # whoever makes other figures writes this page too
                print(f"look at     {write_page(arguments.out, arguments.seed) or arguments.out}")
        if arguments.table is not None:
            print(write_table(arguments.out, arguments.table))
    except ValueError as error:  # of a results.json that is none
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
