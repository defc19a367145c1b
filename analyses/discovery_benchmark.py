"""Claim: whether a method finds the latent graph depends on what it puts in an entry's place, not on cutting alone.

Seven discovery methods score every attention entry of layer 1, and are held to the graph. What stands in for an entry
(nothing; its mean over sequences; its weight in a run on other tokens, or with permuted positions) and what is measured
(the loss; the divergence from the whole model) is the same for all methods in a comparison; a table has a line for each
combination that makes sense. Methods with a single gradient, taken at the whole model, are not asked by the divergence,
whose derivative is zero there; 'path of embeddings' is EAP and EAP-IG as published, between pairs of runs on other
tokens. Attention that depends on positions alone is the same on all tokens: there no method can see it.
Effects that differ by less than a millionth of a nat are ties.

Every edge between heads is scored too, and held to the best circuit of every size, found by trying all of them.

*Planted*: the circuit is written by hand. *Trained*: from a warm start (several parents: heads take turns). *Adam*:
at 0.1 on everything, from zero; some of these models learn the graph. *Decoy*: the planted circuit displaced
(`plant_decoy`: a later row does what the child's row should do), then trained to the end. No model is chosen by what it
turned out to be: all are counted. `is_decoy` tells which have a loss within 0.05 nats of the edge posterior and pay the
parents less than half of their rows' attention.

    python analyses/discovery_benchmark.py                    # 4 graphs x 4 kinds of model x 2 seeds
    python analyses/discovery_benchmark.py --graphs chain --models planted decoy --seeds 1
    python analyses/discovery_benchmark.py --quick            # small and few, to see that it runs

Interrupted, it goes on where it stopped when started again with the same flags and DIR. DIR gets results.json (a row
for each method, counterfactual, metric, graph, model and seed), figures/benchmark*.png and .svg, and report.html.
"""

import argparse
import sys
from pathlib import Path

from command_line import OneLineParser, exit_status, parse

GRAPHS = ("chain", "pairs", "forest", "two-parent")
MODELS = ("planted", "trained", "adam", "decoy")
METHODS = ("exact", "attention", "gradient_x_attention", "eap", "eap_ig", "acdc", "random")  # circuits.METHODS
QUICK = {"n_ctx": 8, "steps": 200, "seeds": 1, "sequences": 256, "frontier_sequences": 16, "max_edges": 9}
LEAST = {"seeds": 1, "seed": 0, "steps": 2, "sequences": 8, "frontier_sequences": 8, "max_edges": 1, "n_ctx": 5}


def main() -> int:
    """Run from the command line."""
    parser = make_parser()
    arguments = parse(parser, QUICK)
    try:
        check(arguments)
    except ValueError as error:
        parser.error(str(error))
    from benchmark_rows import run_from_arguments  # after checking: torch takes seconds to import

    return run_from_arguments(parser, arguments)


def make_parser() -> OneLineParser:
    """Every flag."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), metavar="NAME", help=f"of {', '.join(GRAPHS)}")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="KIND", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="runs of each graph and model (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="the first of these seeds (default 0)")
    parser.add_argument("--d-vocab", type=int, default=3, metavar="S", help="number of tokens (default 3)")
    parser.add_argument("--n-ctx", type=int, default=20, metavar="T", help="context length (default 20)")
    parser.add_argument("--alpha", type=float, default=0.1, help="Dirichlet concentration of the kernels (default 0.1)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 1,024 sequences (default 1000)")
    parser.add_argument("--sequences", type=int, default=1024, help="to score entries on (default 1024)")
    parser.add_argument("--frontier-sequences", type=int, default=64, help="to try all circuits on (default 64)")
    parser.add_argument("--max-edges", type=int, default=19, help="edges to try all circuits of (default 19)")
    parser.add_argument("--quick", action="store_true", help="small models, one seed, few circuits")
    parser.add_argument("--out", type=Path, default=Path("out/discovery_benchmark"), metavar="DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise a ValueError that names the flag, the value and the remedy, before anything heavy is imported."""
    for flag, given, known in (
        ("--graphs", arguments.graphs, GRAPHS),
        ("--models", arguments.models, MODELS),
        ("--methods", arguments.methods, METHODS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{flag} must be of {', '.join(known)}: got {unknown[0]!r}")
    for name, value in LEAST.items():
        if getattr(arguments, name) < value:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {value}: got {getattr(arguments, name)}")
    if not 1 <= arguments.max_edges <= 30:
        raise ValueError(f"--max-edges must lie in 1 .. 30: got {arguments.max_edges}")
    if arguments.d_vocab < 2:
        raise ValueError(f"--d-vocab must be at least 2: got {arguments.d_vocab}")
    if not 0 < arguments.alpha < float("inf"):
        raise ValueError(f"--alpha must be positive and finite: got {arguments.alpha}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
