"""Claim: with two tokens no observation tells which way edges point; tokens set at random in some sequences do.

    python analyses/interventional_data.py                # some five minutes on two cores
    python analyses/interventional_data.py --graph chain --d-vocab 4
    python analyses/interventional_data.py --quick        # seconds

The study is `causal_circuits/studies/interventional_data/`. Killed at any moment, the same command goes on where it
was. The folder out/interventional_data (or --out DIR) gets report.html (look at this), results.json, figures/, cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("interventional_data"))
