"""Recover the causal graph behind your own sequences, or an honest "cannot tell": no model, no training.

    python analyses/recover_graph.py DATA.npz --out out/mine
    python analyses/recover_graph.py --help          # what DATA holds, and sequences to try it on

The study is `causal_circuits/studies/recover_graph/`. The folder out/recover_graph (or --out DIR) gets report.html
(look at this), results.json and figures/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("recover_graph"))
