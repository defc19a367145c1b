"""Claim: on pooled prompts one gradient finds the graph, where classical structure learning on the same table does not.

    python analyses/structure_learning.py                           # some four minutes
    python analyses/structure_learning.py --sizes 1000 10000 --graphs 5
    python analyses/structure_learning.py --parents 2 --graphs 5    # graphs of two parents a position
    python analyses/structure_learning.py --quick                   # seconds

PC needs causal-learn (`pip install -c constraints.txt -e ".[structure]"`); without it PC is left out, and said to be.
The study is `causal_circuits/studies/structure_learning/`. Killed at any moment, the same command goes on where it was.
The folder out/structure_learning (or --out DIR) gets report.html (look at this), results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("structure_learning"))
