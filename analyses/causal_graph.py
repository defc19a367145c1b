"""Claim: layer 1's attention shows the parent of every position that has one, where predicting well needs the graph.

The same job as induction_head.py on any forest: train, read parents out of the attention, tell roots from children by
the information in fresh sequences (attention alone cannot: both graphs are shown), find the heads, prove the circuit.
The defaults are the setting of the paper's Figure 9. On a star all children are exchangeable: a model trained from zero
predicts as well without the graph.

    python analyses/causal_graph.py                              # a random forest drawn from the seed
    python analyses/causal_graph.py --graph pairs --d-vocab 10
    python analyses/causal_graph.py --parents my_graph.json      # [-1, 0, 0, 2, null, ...]

A parents file is a JSON list over the context positions before the query: entry i is the parent of position i, -1 or
null for a root. The query follows by itself, so n_ctx is the list's length plus one.
Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json,
figures/, model/ and record/.
"""

import argparse
import sys
from pathlib import Path

from command_line import add_warm_start, exit_status, make_parser, read_parents_file


def make_graph(arguments: argparse.Namespace) -> object:
    """The graph that the flags name."""
    import causal_circuits as cc

    if arguments.parents is None:
        n_ctx = arguments.n_ctx = 20 if arguments.n_ctx is None else arguments.n_ctx
        graphs = {
            "chain": lambda: cc.chain_graph(n_ctx),
            "pairs": lambda: cc.pairs_graph(n_ctx),
            "forest": lambda: cc.random_forest(n_ctx, arguments.root_probability, seed=arguments.seed),
        }
        if arguments.graph not in graphs:
            raise ValueError(f"--graph must be one of {', '.join(graphs)}: got {arguments.graph!r}")
        return graphs[arguments.graph]()
    parents = read_parents(arguments.parents)
    graph = cc.graph_from_parents(parents)
    if arguments.n_ctx not in (None, len(parents) + 1):
        raise ValueError(
            f"--n-ctx {arguments.n_ctx} and {arguments.parents} disagree: {len(parents)} parents and a query make "
            f"n_ctx {len(parents) + 1}; leave --n-ctx out"
        )
    graph.graph["name"] = arguments.parents.stem
    return graph


def read_parents(path: Path) -> list[int | None]:
    """A JSON list of parents; a ValueError that says what the file holds instead."""
    parents = read_parents_file(path, "a list")
    if not isinstance(parents, list):
        raise ValueError(
            f"a parents file must hold a list, one entry a position: {path} holds a {type(parents).__name__}"
        )
    if any(isinstance(entry, list) for entry in parents):
        raise ValueError(f"this analysis takes one parent a position: {path} holds lists of parents")
    return parents


def main() -> int:
    """Run from the command line."""
    parser = make_parser(__doc__ or "", "causal_graph", d_vocab=3, n_ctx=None, steps=4500)
    add_warm_start(parser)
    parser.add_argument("--graph", default="forest", metavar="NAME", help="chain, pairs or forest (default forest)")
    parser.add_argument("--root-probability", type=float, default=0.5, help="of --graph forest (default 0.5)")
    parser.add_argument("--parents", type=Path, metavar="FILE", help="a JSON list of parents, in place of --graph")
    arguments = parser.parse_args()
    from recover_and_prove import run_from_arguments  # after parsing: torch takes seconds to import

    return run_from_arguments(parser, arguments, make_graph)


if __name__ == "__main__":
    sys.exit(exit_status(main))
