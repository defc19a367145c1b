"""Claim: the circuit of a model can be written down edge by edge, and proved, refuted, or left undecided.

Takes one two-layer model - trained here, or loaded from a folder that another analysis wrote - and asks in this order:
do the tools obey their own laws on it; which circuit is the best of its size, out of all there are; is that circuit
faithful, complete, minimal and sufficient on fresh sequences (sufficient: better than all others of its size, or a
random choice of them; where they are too few for the level, that cannot be tested); which discovery method would have
found it, all asked by the same loss and the same counterfactual; does causal
scrubbing leave the paper's hypothesis standing; and do the attention entries that matter equal the latent graph. If the
model is trained here, also, over several seeds: when did each edge begin to matter, against when attention shows it and
how hard the gradient pulled at it.

    python analyses/circuit_proof.py                                     # a forest, about two minutes on two cores
    python analyses/circuit_proof.py --graph chain --d-vocab 10
    python analyses/circuit_proof.py --model out/induction_head/model --graph chain --d-vocab 10
    python analyses/circuit_proof.py --decoy                             # Adam from zero: often no graph, see it fail

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json,
figures/, circuit.json, circuit.graphml, circuit.csv, and model/ if it was trained here.
"""

import argparse
import sys
from pathlib import Path

from causal_graph import make_graph
from command_line import exit_status, make_parser


def main() -> int:
    """Run from the command line."""
    parser = make_parser(__doc__ or "", "circuit_proof", d_vocab=3, n_ctx=None)
    parser.add_argument("--graph", default="forest", metavar="NAME", help="chain, pairs or forest (default forest)")
    parser.add_argument("--root-probability", type=float, default=0.5, help="of --graph forest (default 0.5)")
    parser.add_argument("--parents", type=Path, metavar="FILE", help="a JSON list of parents, in place of --graph")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="prove this saved model's circuit; train nothing")
    parser.add_argument("--decoy", action="store_true", help="train by Adam at 0.1 from zero: often no graph")
    parser.add_argument(
        "--sequences", type=int, default=1024, help="to prove on; an eighth of them to search on (default 1024)"
    )
    parser.add_argument(
        "--formation-seeds", type=int, default=5, metavar="N", help="runs to see edges form in (default 5)"
    )
    arguments: argparse.Namespace = parser.parse_args()
    try:
        check(arguments)
    except ValueError as error:
        parser.error(str(error))
    from prove_one import run_from_arguments  # after checking: torch takes seconds to import

    return run_from_arguments(parser, arguments, make_graph)


def check(arguments: argparse.Namespace) -> None:
    """Raise a ValueError that names the flag, the value and the remedy, before anything heavy is imported."""
    least = {"steps": 2, "seed": 0, "sequences": 64, "formation_seeds": 1}
    for name, value in least.items():
        if getattr(arguments, name) < value:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {value}: got {getattr(arguments, name)}")
    if arguments.model is not None and arguments.decoy:
        raise ValueError("--decoy trains a model and --model loads one: choose one of them")


if __name__ == "__main__":
    sys.exit(exit_status(main))
