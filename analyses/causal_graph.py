"""Claim: on most forests layer 0's attention shows the parent of every position that has one.

    python analyses/causal_graph.py                              # a random forest drawn from the seed
    python analyses/causal_graph.py --graph pairs --d-vocab 10
    python analyses/causal_graph.py --parents my_graph.json      # [-1, 0, 0, 2, null, ...]

The study is `causal_circuits/studies/causal_graph.py`. Killed at any moment, the same command goes on where it was. The
folder out/causal_graph (or --out DIR) gets report.html (look at this), results.json, figures/, model/ and record/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("causal_graph"))
