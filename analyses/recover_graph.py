"""Recover the causal graph behind your own sequences: one gradient evaluation, no model, no training.

DATA holds sequences whose last token is a query, and what followed it:

    tokens        integers [sequences, n_ctx], each in 0 .. d_vocab - 1, the query last
    target_probs  [sequences, d_vocab]: the law of the next token   ... or
    labels        [sequences]: the next token itself

as an .npz or a .safetensors file. Each sequence may have a transition kernel of its own. Every position gets a verdict:
a child with its parent, a root, or undecided where the data cannot tell or contradict a forest (a second parent); the
reason says which, and how many sequences would do where more of them are what is lacking.

    python analyses/recover_graph.py DATA.npz --out out/mine
    python -c "import causal_circuits as cc, numpy as np
    batch = cc.InContextTask(cc.chain_graph(12), d_vocab=4).sample(2000)
    np.savez('chain.npz', tokens=batch.tokens, target_probs=batch.target_probs)"      # sequences to try it on

DIR gets report.html (look at this), results.json and figures/. In results.json, graph.found_parents has one entry for
each context position (null: no parent found, or the query); graph.p_values and graph.weights are those of each
position's candidate (null at the first and the last, which have none).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from command_line import BEGAN, OneLineParser, exit_status

SUFFIXES = (".npz", ".safetensors")


def make_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="an .npz or .safetensors file")
    parser.add_argument("--d-vocab", type=int, metavar="S", help="number of tokens (default: what the data show)")
    parser.add_argument("--level", type=float, default=0.05, help="the chance of any false edge (default 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="recorded, no more: nothing here is random")
    parser.add_argument(
        "--out", type=Path, default=Path("out/recover_graph"), metavar="DIR", help="default %(default)s"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser


def main() -> int:
    """Run from the command line."""
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed must be 0 or more: got {arguments.seed}")
    if arguments.data.suffix not in SUFFIXES:
        parser.error(f"DATA must be a file that ends in {' or '.join(SUFFIXES)}: got {arguments.data}")
    from recovery_page import draw_figures, table, write_page  # after parsing: torch takes seconds to import
    from results_file import claim_folder, result_header, say, write_results
    from user_arrays import read_arrays

    import causal_circuits as cc

    tell = say(arguments.quiet)
    try:
        tell(f"reading {arguments.data}")
        arrays = read_arrays(arguments.data)
        claim_folder(arguments.out)
        tell("one pass over the sequences for the scores, another for their errors")
        targets = arrays.get("target_probs", arrays.get("labels"))
        found = cc.recover_graph(arrays["tokens"], targets, d_vocab=arguments.d_vocab, level=arguments.level)
    except ValueError as error:
        parser.error(str(error))
    content: dict[str, Any] = result_header(parser.prog, arguments) | results(found, arrays)
    draw_figures(found, arguments.out / "figures")
    content["timing"] = {"wall_s": time.perf_counter() - BEGAN}
    write_results(content, arguments.out)
    write_page(found, content, arguments.out)
    print(table(found, arguments.out))
    return 0


def results(found: Any, arrays: dict[str, Any]) -> dict[str, object]:
    """Every number of the table."""
    from dataclasses import asdict

    return {
        "data": {
            "n_sequences": found.n_sequences,
            "n_independent": found.n_independent,
            "n_ctx": len(found.positions) + 1,
            "targets": "target_probs" if "target_probs" in arrays else "labels",
        },
        "graph": {
            "found_parents": [*found.found_parents, None],  # the query, the last position, has no parent
            "p_values": [*(None if p.candidate is None else p.p_value for p in found.positions), None],
            "weights": [*(None if p.candidate is None else p.weight for p in found.positions), None],
            "verdicts": [*(p.verdict for p in found.positions), "query"],
            "edges": sum(p.parent is not None for p in found.positions),
            "undecided": list(found.undecided),
            "conclusive": found.conclusive,
        },
        "sequences_needed": found.sequences_needed,
        "warnings": list(found.warnings),
        "positions": [asdict(p) for p in found.positions],
    }


if __name__ == "__main__":
    sys.exit(exit_status(main))
