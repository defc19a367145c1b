"""Question: which edges does the paper's training leave unlearned in Figure 9, what frees them, what predicts them?

    python analyses/unlearned_edges.py                 # some six minutes of processor time
    python analyses/unlearned_edges.py --quick         # seconds; too short to show anything

The study is `causal_circuits/studies/unlearned_edges/`. Killed at any moment, the same command goes on where it was.
The folder out/unlearned_edges (or --out DIR) gets report.html (look at this), results.json, with a section for
docs/REPRODUCTION.md, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("unlearned_edges"))
