"""Claim: trained on one prior, a model predicts under matrices of others, better in longer contexts; not from all.

    python analyses/generalization.py                     # some three minutes
    python analyses/generalization.py --alpha 0.3 --gamma 0.2 --graph forest
    python analyses/generalization.py --quick             # seconds

The study is `causal_circuits/studies/generalization/`. Killed at any moment, the same command goes on where it was. The
folder out/generalization (or --out DIR) gets report.html (look at this), results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("generalization"))
