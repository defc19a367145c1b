"""The pictures on the studies' pages: `python docs/pictures.py NAME ...` runs studies and keeps a figure of each.

Without names all of them, which takes about an hour on two cores.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
PICTURES = {  # study: flags, figure, what it shows
    "causal_graph": (
        "--d-vocab 3 --n-ctx 10 --steps 400",
        "graph",
        "The graph that was read out of attention, beside the true one; a short training.",
    ),
    "circuit_proof": ("", "circuit", "The best circuit of its size, and what each of its edges is worth in nats."),
    "discovery_benchmark": (
        "--quick",
        "benchmark",
        "Methods against kinds of models, a panel for each question; a small run.",
    ),
    "generalization": (
        "--quick",
        "example",
        "One row of an unseen transition matrix: truth, counts, model; a small run.",
    ),
    "gradient_information": (
        "--graph chain forest --d-vocab 3 --n-ctx 20 60 100 --forests 0",
        "slope_against_n_ctx",
        "Slope of the gradient on g, its limit in long contexts, and on G, which is expected at its own length.",
    ),
    "induction_head": (
        "",
        "attention_film",
        "Layer 0's attention at six steps of training; squares are the true edges.",
    ),
    "interventional_data": (
        "",
        "directions",
        "Directions told: by the larger entry of a pair (above), by what fades where tokens are set (below).",
    ),
    "learnability": ("", "first", "When the graph is there, against when the loss is; a mark a setting."),
    "multi_head": ("--seed 2", "loss", "The loss of two heads, beside the best that one parent known would give."),
    "recover_graph": (
        "chain.npz",
        "graph",
        "The graph of 2,000 sequences, no model; `--help` says how chain.npz is made.",
    ),
    "reproduce_paper": (
        "--figure 9",
        "figure_9_forests",
        "The 20 forests of the paper's Figure 9; squares are the true edges.",
    ),
    "sample_complexity": ("", "needed", "Sequences needed against the number predicted; a mark a table."),
    "selective_induction": ("", "excess", "How near each architecture comes to exact Bayes over lags; a mark a seed."),
    "statistical_induction": (
        "--seed 10",
        "phases_dirichlet",
        "How far the model is from each predictor, step by step.",
    ),
    "structure_learning": (
        "--quick --graphs 1",
        "forests",
        "One graph, and what the gradient and Chow-Liu make of it.",
    ),
    "two_stage": (
        "--quick",
        "one_run",
        "The loss through both stages of Algorithm 1, stage 2 right of the line; a small run.",
    ),
    "unlearned_edges": (
        "--quick",
        "unlearned_edges",
        "One unlearned edge, as it is and in six changed graphs; a small run.",
    ),
    "zoo": (
        "--quick --graphs chain forest --models planted decoy",
        "scores",
        "Scores of three methods on models with known truth; a small run.",
    ),
}


def command(name: str) -> str:
    """What makes the picture of a study."""
    return f"causal-circuits {name.replace('_', '-')} {PICTURES[name][0]}".strip()


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        out = DOCS.parent / "out" / "pictures" / name
        subprocess.run([*command(name).split(), "--out", str(out)], check=True)
        figure = Image.open(out / "figures" / f"{PICTURES[name][1]}.png")
        figure.convert("RGB").quantize(64).save(DOCS / "pictures" / f"{name}.png", optimize=True)
