"""Claim: one gradient finds the graph from no more sequences than its signal and noise predict.

    python analyses/sample_complexity.py                # some four minutes on two cores
    python analyses/sample_complexity.py --alpha 0.3 --n-ctx 15 30 60
    python analyses/sample_complexity.py --quick        # seconds

The study is `causal_circuits/studies/sample_complexity.py`. Killed at any moment, the same command goes on where it
was. The folder out/sample_complexity (or --out DIR) gets report.html (look at this), results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("sample_complexity"))
