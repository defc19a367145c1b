"""Claim: cutting single entries of layer 0 ranks those written into planted models and decoys above all others.

    python analyses/zoo.py                                   # 26 models as files, with their truth
    python analyses/zoo.py --graphs chain --models planted decoy --seeds 5

The study is `causal_circuits/studies/zoo.py`. Killed at any moment, the same command goes on where it was. The folder
out/zoo (or --out DIR) gets models/ (with a card), report.html (look at this), results.json and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("zoo"))
