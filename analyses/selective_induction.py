"""Claim: where the lag of a chain is latent, three layers can select it in context; no two trained layers do as well.

    python analyses/selective_induction.py            # lags 1 and 2, five seeds
    python analyses/selective_induction.py --quick    # one seed, fewer steps

The study is `causal_circuits/studies/selective_induction/`. Killed at any moment, the same command goes on where it
was. The folder out/selective_induction (or --out DIR) gets report.html (look at this), results.json, figures/ and
cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("selective_induction"))
