"""Claim: the circuit of a model can be written down edge by edge, and proved, refuted, or left undecided.

    python analyses/circuit_proof.py                                     # a forest, about two minutes on two cores
    python analyses/circuit_proof.py --graph chain --d-vocab 10
    python analyses/circuit_proof.py --model out/induction_head/model --graph chain --d-vocab 10
    python analyses/circuit_proof.py --decoy                             # Adam from zero: often no graph, see it fail
    python analyses/circuit_proof.py --graph 3-gram --n-ctx 12           # two parents, two heads in layer 0

The study is `causal_circuits/studies/circuit_proof/`. Killed at any moment, the same command goes on where it was. The
folder out/circuit_proof (or --out DIR) gets report.html (look at this), results.json, figures/, circuit.json,
cells/, and model/ if it was trained here.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("circuit_proof"))
