"""Claim: a two-layer transformer trained on in-context Markov chains learns an induction head.

Trains a disentangled HookedTransformer, all trained weights zero at the start, on sequences in which every token
depends on the one before, through a transition kernel that is new in every sequence; reads the chain back out of its
layer-1 attention (alone, and with a test of every edge for information in fresh sequences); finds the previous-token
head and the induction head; and proves the circuit by ablating each head and cutting each attention entry. Minutes on
two cores. With --warm-start --steps 2000 layer 2's match and the read-out are written in before training: sharper, in
half the steps, but only layer 1 is learned from nothing.

    python analyses/induction_head.py                    # the paper's setting: 10 tokens, context 20
    python analyses/induction_head.py --d-vocab 5 --n-ctx 40

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json,
figures/, model/ and record/.
"""

import argparse
import sys

from command_line import add_warm_start, exit_status, make_parser


def make_graph(arguments: argparse.Namespace) -> object:
    """The chain."""
    import causal_circuits as cc

    return cc.chain_graph(arguments.n_ctx)


def main() -> int:
    """Run from the command line."""
    parser = make_parser(__doc__ or "", "induction_head", d_vocab=10, n_ctx=20, steps=4500)
    add_warm_start(parser)
    arguments = parser.parse_args()
    from recover_and_prove import run_from_arguments  # after parsing: torch takes seconds to import

    return run_from_arguments(parser, arguments, make_graph)


if __name__ == "__main__":
    sys.exit(exit_status(main))
