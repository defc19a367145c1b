"""Claim: in a child's row of layer 0's first gradient the parent is largest; it follows the information it tends to.

    python analyses/gradient_information.py               # the whole table, some five minutes on one core
    python analyses/gradient_information.py --quick       # a minute, small sizes
    python analyses/gradient_information.py --n-ctx 100 --alpha 1 --d-vocab 3 5 --sequences 50000

The study is `causal_circuits/studies/gradient_information/`. Killed at any moment, the same command goes on where it
was. The folder out/gradient_information (or --out DIR) gets report.html (look at this), results.json, figures/ and
cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("gradient_information"))
