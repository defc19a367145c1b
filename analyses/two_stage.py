"""Claim: Algorithm 1 learns the graph in stage 1 and lowers the loss in stage 2; its rates beside Theorem 1's.

    python analyses/two_stage.py                                  # about three minutes
    python analyses/two_stage.py --lengths 20 40 80 --seeds 5 --graph forest
    python analyses/two_stage.py --quick                          # seconds; too short to show the rates

The study is `causal_circuits/studies/two_stage.py`. Killed at any moment, the same command goes on where it was. The
folder out/two_stage (or --out DIR) gets report.html (look at this), results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("two_stage"))
