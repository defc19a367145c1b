"""Claim: only methods that cut things and look find the latent graph; a low loss is no sign of it.

Seven discovery methods on models whose truth is known edge by edge. *Planted*: the circuit is written by hand.
*Trained*: by the default recipe, which learns the graph. *Decoy*: trained by Adam at 0.1 from zero, which on many
graphs predicts as well without the graph. On others it learns the graph, or predicts badly; so what counts as a decoy
has a loss within 0.05 nats of the edge posterior, and pays the parents less than half of their rows' attention. Where
the recipe gives no such model the table names the graph, and its rows (is_decoy: false) enter no mean and no figure.

Every method scores every attention entry of layer 1, which is held to the graph, and every edge between heads, which is
held to the best circuit of every size, found by trying all of them. The entries are scored by the loss, which asks what
is of *use* (a divergence from the whole model would ask what is used, and roots' rows are used for much). Cutting one
edge of a planted chain costs 0.003 nats, with a standard error of 0.0015 over 1,024 sequences: with so few, some edge
of a graph often gets a negative effect by chance; hence 4,096.

    python analyses/discovery_benchmark.py                    # 4 graphs x 3 kinds of model x 2 seeds
    python analyses/discovery_benchmark.py --graphs chain --models planted decoy --seeds 1
    python analyses/discovery_benchmark.py --quick            # seconds: small and few, to see that it runs

Interrupted, it goes on where it stopped when started again with the same flags and DIR. DIR gets results.json (a row
for each method, graph, model and seed), figures/benchmark.png and .svg, and report.html.
"""

import argparse
import sys
from pathlib import Path

from command_line import OneLineParser

GRAPHS = ("chain", "pairs", "forest", "two-parent")
MODELS = ("planted", "trained", "decoy")


def main() -> int:
    """Run from the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), metavar="NAME", help=f"of {', '.join(GRAPHS)}")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="KIND", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all seven unless said")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="runs of each graph and model (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="the first of these seeds (default 0)")
    parser.add_argument("--d-vocab", type=int, default=3, metavar="S", help="number of tokens (default 3)")
    parser.add_argument("--n-ctx", type=int, default=20, metavar="T", help="context length (default 20)")
    parser.add_argument("--alpha", type=float, default=0.1, help="Dirichlet concentration of the kernels (default 0.1)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of 1,024 sequences (default 1500)")
    parser.add_argument("--sequences", type=int, default=4096, help="to score entries on (default 4096)")
    parser.add_argument("--frontier-sequences", type=int, default=64, help="to try all circuits on (default 64)")
    parser.add_argument("--max-edges", type=int, default=19, help="edges to try all circuits of (default 19)")
    parser.add_argument("--quick", action="store_true", help="small models, one seed, few circuits")
    parser.add_argument("--out", type=Path, default=Path("out/discovery_benchmark"), metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    arguments = parser.parse_args()
    if arguments.quick:
        quick = {"n_ctx": 8, "steps": 200, "seeds": 1, "sequences": 256, "frontier_sequences": 16, "max_edges": 9}
        vars(arguments).update(quick)
    from benchmark_rows import run_from_arguments  # after parsing: torch takes seconds to import

    return run_from_arguments(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
