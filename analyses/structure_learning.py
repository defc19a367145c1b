"""Claim: on pooled prompts one gradient finds the graph, where classical structure learning on the same table does not.

On the 20 forests of the paper's Figure 9. Every method is given the same table: the tokens, the query among them, and
one sampled next token a sequence. The first gradient of layer 0's attention, and once more with the exact law of the
next token; the covariance of 1[x_i = next token] and 1[x_j = query], what that gradient computes; the attention
of a model trained on the table; mutual information and the Chow-Liu tree, of the positions alone, with query and next
token as further nodes, and given them; PC with chi-squared tests. Three settings: *pooled* over prompts with a fresh
kernel each, the setting of the paper; *one fixed kernel* behind all sequences, which the classical methods are made
for; and *pure noise*, where nothing can be found.

    python analyses/structure_learning.py                           # about ten minutes
    python analyses/structure_learning.py --sizes 1000 10000 --graphs 5
    python analyses/structure_learning.py --quick                   # seconds

PC needs causal-learn (`pip install -c constraints.txt -e ".[structure]"`); without it PC is left out, and said to be.
Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json and
figures/.
"""

import argparse
import sys
from functools import partial

from command_line import base_parser, exit_status, parse, read_figure_9

QUICK = {"sizes": [500, 2000], "graphs": 2, "pc_graphs": 1, "pc_size": 500, "steps": 40}


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "structure_learning")
    sizes = [100, 300, 1000, 3000, 20_000]
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=sizes,
        metavar="N",
        help="sequences (default 100 300 1000 3000 20000)",
    )
    parser.add_argument("--graphs", type=int, default=20, help="of Figure 9, from the first (default 20: all)")
    parser.add_argument("--d-vocab", type=int, default=3, metavar="S", help="number of tokens (default 3)")
    parser.add_argument("--alpha", type=float, default=0.1, help="Dirichlet concentration (default 0.1)")
    parser.add_argument("--steps", type=int, default=100, help="of training layer 1's attention (default 100)")
    parser.add_argument("--level", type=float, default=0.05, help="family-wise error of every test (default 0.05)")
    parser.add_argument("--pc-graphs", type=int, default=20, help="graphs that PC is run on (default 20: all)")
    parser.add_argument("--pc-size", type=int, default=20_000, help="most sequences PC is given (default 20000)")
    parser.add_argument("--quick", action="store_true", help="two graphs, two sizes: seconds")
    return parser, parse(parser, QUICK)


def fixed_kernel(d_vocab: int, seed: int) -> object:
    """The one kernel behind all sequences of the second setting: rows from Dirichlet(1), entries at least .1 / S."""
    import causal_circuits as cc

    return cc.kernel_family("dirichlet 1", 1, d_vocab, gamma=0.1, seed=seed)[0]


def noise(n: int, n_ctx: int, d_vocab: int, seed: tuple[int, ...]) -> object:
    """A table without any structure: uniform tokens, and laws of the next token that have nothing to do with them."""
    import numpy as np

    import causal_circuits as cc

    generator = np.random.default_rng(seed)
    tokens = generator.integers(d_vocab, size=(n, n_ctx))
    return cc.Batch(tokens, generator.dirichlet(np.ones(d_vocab), size=n).astype(np.float32))


def measure_graph(index: int, graph: object, arguments: argparse.Namespace, pc: object) -> list[dict[str, object]]:
    """One row for each setting, number of sequences and method."""
    from structure_methods import METHODS, PC, PC_NODES, Table, find_edges

    import causal_circuits as cc

    rows, most, true = [], max(arguments.sizes), cc.latent_edges(graph)
    priors = {
        "pooled prompts": {"alpha": arguments.alpha},
        "one fixed kernel": {"kernels": fixed_kernel(arguments.d_vocab, seed=arguments.seed + 100 + index)},
    }
    tasks = {setting: cc.InContextTask(graph, arguments.d_vocab, **prior) for setting, prior in priors.items()}
    batches = {setting: task.sample(most, seed=(arguments.seed, 8, index)) for setting, task in tasks.items()}
    n_ctx = graph.number_of_nodes() - 1
    batches["pure noise"] = noise(most, n_ctx, arguments.d_vocab, seed=(arguments.seed, 9, index))
    for setting, batch in batches.items():
        whole = Table.of(batch, seed=arguments.seed + index)
        for size in [most] if setting == "pure noise" else arguments.sizes:
            for method in METHODS:
                is_pc = method in (PC, PC_NODES)
                if is_pc and (pc is None or index >= arguments.pc_graphs or size > arguments.pc_size):
                    continue
                found = find_edges(
                    method, whole[:size], level=arguments.level, steps=arguments.steps, seed=arguments.seed, pc=pc
                )
                recovery = cc.compare_graphs(graph, found.graph)
                rows.append(
                    {
                        "graph": index,
                        "setting": setting,
                        "sequences": size,
                        "method": method,
                        "edges": len(true),
                        "parents_by_chance": sum(1 / child for _, child in true),
                        "variance_by_chance": sum((1 - 1 / child) / child for _, child in true),
                        "edges_proposed": len(found.proposed),
                        "parents_proposed": len(true & found.proposed),
                        "edges_found": len(true) - len(recovery.missing),
                        "false_edges": len(recovery.false),
                        "shd": recovery.structural_hamming_distance,
                        "seconds": found.seconds,
                    }
                )
    return rows


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    from going_on import Units  # after parsing: torch takes seconds to import
    from results_file import begin
    from structure_methods import MISSING, load_pc
    from structure_page import finish
    from studies import check_counts
    from tqdm.auto import tqdm

    import causal_circuits as cc

    try:
        check_counts(arguments, sizes=10, graphs=1, steps=1, pc_graphs=0, pc_size=10)
        if not 0 < arguments.level < 1:
            raise ValueError(f"--level must lie between 0 and 1: got {arguments.level}")
        graphs = [cc.graph_from_parents(parents) for parents in read_figure_9()[: arguments.graphs]]
        cc.InContextTask(graphs[0], arguments.d_vocab, arguments.alpha)
        begin(arguments)
        pc, rows = load_pc(), []
        units = Units.of(parser.prog, arguments, pc=pc is not None)
    except ValueError as error:
        parser.error(str(error))
    if pc is None:
        print(MISSING, file=sys.stderr)
    for index, graph in enumerate(
        tqdm(graphs, desc="structure learning", unit="graph", disable=True if arguments.quiet else None)
    ):
        rows += units.made(f"graph {index}", partial(measure_graph, index, graph, arguments, pc))
    print(finish(arguments, units, rows, has_pc=pc is not None))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
