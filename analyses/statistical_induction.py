"""Claim: trained on Markov chains, a model predicts like all tokens alike, then like counts, then in context.

    python analyses/statistical_induction.py            # eight minutes on two cores
    python analyses/statistical_induction.py --quick    # a minute: shorter sequences, one seed

The study is `causal_circuits/studies/statistical_induction.py`. Killed at any moment, the same command goes on where it
was. The folder out/statistical_induction (or --out DIR) gets report.html (look at this), results.json, figures/ and
cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("statistical_induction"))
