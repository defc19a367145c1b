"""Claim: with k parents a position, k heads of layer 0 share the graph between them; one, trained as long, stops above.

Trains a multi-head disentangled HookedTransformer on sequences in which every token depends on several earlier ones.
Heads take turns: each is given, from the mixed second derivative of the loss, the parent that tells most beyond what
the heads before it carry. Then reads the union graph out of all heads (which carries which parent, where), names what
is missing and why, cuts every attention entry of every head, and trains a single head on the same task for as many
steps to show where it stops: from several seeds, and only a difference of more than .05 nats in each of them counts.
Some eight minutes on two cores.

    python analyses/multi_head.py                        # the paper's graph: parents (i - 1) // 2 and i - 1
    python analyses/multi_head.py --ngram 4 --d-vocab 3  # 4-grams: three parents, three heads
    python analyses/multi_head.py --parents my_dag.json  # [[], [], [0, 1], ..., [3, 7]]
    python analyses/multi_head.py --quick                # a tenth of the steps: about a minute

A parents file is a JSON list of lists over all context positions and, last, the target: n_ctx + 1 entries, [] for a
root. Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json,
figures/, model/ and record/.
"""

import argparse
import sys
from pathlib import Path

from command_line import exit_status, make_parser, read_parents_file


def make_graph(arguments: argparse.Namespace) -> object:
    """The graph that the flags name; sets arguments.n_ctx."""
    import causal_circuits as cc

    if arguments.ngram is not None and arguments.parents is not None:
        raise ValueError("--ngram and --parents both name a graph: give one of them")
    if arguments.parents is not None:
        parents = read_parents(arguments.parents)
        if arguments.n_ctx not in (None, len(parents) - 1):
            raise ValueError(
                f"--n-ctx {arguments.n_ctx} and {arguments.parents} disagree: {len(parents)} lists, the target's last, "
                f"make n_ctx {len(parents) - 1}; leave --n-ctx out"
            )
        arguments.n_ctx = len(parents) - 1
        graph = cc.graph_from_parents(parents)
        graph.graph["name"] = arguments.parents.stem
        return graph
    arguments.n_ctx = 32 if arguments.n_ctx is None else arguments.n_ctx
    if arguments.ngram is not None:
        if arguments.ngram < 2:
            raise ValueError(f"--ngram must be at least 2 (one parent): got {arguments.ngram}")
        return cc.ngram_graph(arguments.n_ctx, arguments.ngram - 1)
    if arguments.n_ctx < 3:
        raise ValueError(f"--n-ctx must be at least 3 for the paper's graph: got {arguments.n_ctx}")
    graph = cc.graph_from_parents([[], [], *([(i - 1) // 2, i - 1] for i in range(2, arguments.n_ctx + 1))])
    graph.graph["name"] = "the paper's two-parent graph"
    return graph


def read_parents(path: Path) -> list[list[int]]:
    """A JSON list of lists; a ValueError that says what the file holds instead."""
    parents = read_parents_file(path, "a list of lists")
    if not isinstance(parents, list) or not all(isinstance(entry, list) for entry in parents):
        raise ValueError(
            f"a parents file must hold a list of lists, one a position and the target's last, [] for a root: {path}"
        )
    return parents


def heads_of(text: str | None, n_parents: int) -> tuple[int, int]:
    """The heads of both layers: as many in the first as the target has parents, unless a flag says otherwise."""
    if text is None:
        return n_parents, 1
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--heads must be two integers such as 2,1: got {text!r}") from error
    if first < 1 or second < 1:
        raise ValueError(f"--heads needs at least one head in each layer: got {text!r}")
    return first, second


def main() -> int:
    """Run from the command line."""
    parser = make_parser(__doc__ or "", "multi_head", d_vocab=5, n_ctx=None, steps=6000)
    parser.add_argument("--ngram", type=int, metavar="K", help="K-grams: K - 1 parents, the positions just before")
    parser.add_argument("--parents", type=Path, metavar="FILE", help="a JSON list of lists of parents")
    parser.add_argument("--heads", metavar="K,M", help="heads of the two layers (default: one a parent, 1)")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="how many seeds compare k heads with one (default 3)"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, smaller samples")
    arguments = parser.parse_args()
    from multi_head_findings import run_from_arguments  # after parsing: torch takes seconds to import

    return run_from_arguments(parser, arguments, make_graph, heads_of)


if __name__ == "__main__":
    sys.exit(exit_status(main))
