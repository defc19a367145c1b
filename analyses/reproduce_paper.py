"""Claim: figures 2 and 5 to 9 of the paper run from here; each is set beside what the authors recorded.

    python analyses/reproduce_paper.py --figure 9                # our recipe: minutes
    python analyses/reproduce_paper.py --figure 9 --faithful     # the paper's optimiser, schedule, start and steps
    python analyses/reproduce_paper.py --figure all              # 2, 5, 6, 7, 8 and 9
    python analyses/reproduce_paper.py --table docs/REPRODUCTION.md   # the table of what DIR holds

The study is `causal_circuits/studies/reproduce_paper/`. Killed at any moment, the same command goes on where it was,
also inside a training of the paper's. The folder out/reproduce_paper (or --out DIR) gets report.html (look at this),
figures/ and, for each figure, figure_N/ (figure_N_faithful/) with its results.json and models.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("reproduce_paper"))
