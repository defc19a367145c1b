"""Claim: the first gradient has the graph wherever training finds it; the loss can be reached without it.

    python analyses/learnability.py --processes 2       # 324 settings
    python analyses/learnability.py --full --ray auto   # 20,000 settings, on a cluster (docs/CLUSTER.md)
    python analyses/learnability.py --quick             # seconds

The study is `causal_circuits/studies/learnability.py`. Killed at any moment, the same command goes on where it was. The
folder out/learnability (or --out DIR) gets report.html (look at this), learnability.parquet (a row a setting),
results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("learnability"))
