"""Claim: with k parents a position, k heads of layer 0 share the graph between them; one, trained as long, stops above.

    python analyses/multi_head.py                        # the paper's graph; some four minutes on two cores
    python analyses/multi_head.py --ngram 4 --d-vocab 3  # 4-grams: three parents, three heads
    python analyses/multi_head.py --parents my_dag.json  # [[], [], [0, 1], ..., [3, 7]]
    python analyses/multi_head.py --quick                # a tenth of the steps: about a minute

The study is `causal_circuits/studies/multi_head/`. Killed at any moment, the same command goes on where it was, also
inside a training. The folder out/multi_head (or --out DIR) gets report.html (look at this), results.json, figures/,
model/, record/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("multi_head"))
