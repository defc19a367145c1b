"""Claim: whether a method finds the latent graph depends on what it puts in an entry's place, not on cutting alone.

    python analyses/discovery_benchmark.py                    # 4 graphs x 4 kinds of model x 2 seeds
    python analyses/discovery_benchmark.py --graphs chain --models planted decoy --seeds 1
    python analyses/discovery_benchmark.py --quick            # small and few, to see that it runs

The study is `causal_circuits/studies/discovery_benchmark/`. Killed at any moment, the same command goes on where it
was; more graphs, models and seeds can be asked for later. The folder out/discovery_benchmark (or --out DIR) gets
report.html (look at this), results.json, figures/ and cells/.
"""

import sys

from causal_circuits.cli import main

if __name__ == "__main__":
    sys.exit(main("discovery_benchmark"))
