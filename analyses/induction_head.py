"""Claim: a two-layer transformer trained on in-context Markov chains learns an induction head.

    python analyses/induction_head.py                    # the paper's setting: 10 tokens, context 20; a minute
    python analyses/induction_head.py --d-vocab 5 --n-ctx 40
    python analyses/induction_head.py --warm-start --steps 2000      # only layer 0 is learned from nothing

The study is `causal_circuits/studies/induction_head.py`. Killed at any moment, the same command goes on where it was.
The folder out/induction_head (or --out DIR) gets report.html (look at this), results.json, figures/, model/, record/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("induction_head"))
