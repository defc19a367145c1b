"""Claim: Algorithm 1 learns the graph in stage 1 and lowers the loss in stage 2; its rates beside Theorem 1's.

Stage 1 moves layer 1's attention alone (the paper's A1) while layer 2 is beta0 times the identity; stage 2 moves layer
2 alone. In the paper's reduced model by gradient descent, as in the theorem, and by Adam; in the full disentangled
transformer by Adam. Measured at several context lengths and seeds, and after stage 1 on the 20 graphs of Figure 9:

    1 - softmax(A1)_{i, p(i)}    theorem: O(1 / n_ctx)
    loss - L*, L* the entropy    theorem: a power of the (effective) length

    python analyses/two_stage.py                                  # about three minutes
    python analyses/two_stage.py --lengths 20 40 80 --seeds 5 --graph forest
    python analyses/two_stage.py --quick                          # seconds; too short to show the rates

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json and
figures/.
"""

import argparse
import sys
import time
from functools import partial

from command_line import base_parser, exit_status, parse, read_figure_9

QUICK = {"lengths": [8, 20], "seeds": 1, "steps": [60, 60], "batch_size": 128, "test": 1024, "figure_9": 1}


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "two_stage")
    lengths = [10, 20, 40, 80, 160]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, metavar="T", help="default 10 20 40 80 160")
    parser.add_argument("--seeds", type=int, default=3, help="runs at each length (default 3)")
    parser.add_argument("--graph", default="chain", metavar="NAME", help="chain, pairs or forest (default chain)")
    parser.add_argument("--d-vocab", type=int, default=3, metavar="S", help="number of tokens (default 3)")
    parser.add_argument("--alpha", type=float, default=1.0, help="Dirichlet concentration (default 1: uniform rows)")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[100, 200], metavar="N", help="of stage 1 and 2 (default 100 200)"
    )
    parser.add_argument("--batch-size", type=int, default=512, help="sequences a step (default 512)")
    parser.add_argument("--test", type=int, default=4096, help="test sequences (default 4096)")
    parser.add_argument("--figure-9", type=int, default=20, metavar="N", help="graphs of Figure 9 (default 20: all)")
    parser.add_argument("--quick", action="store_true", help="two lengths, one seed, one graph: seconds")
    return parser, parse(parser, QUICK)


def measure_lengths(
    arguments: argparse.Namespace, make_graph: object, units: object, bar: object
) -> list[dict[str, object]]:
    """One row, and one unit, for each variant, length and seed."""
    from algorithm_1 import VARIANTS

    import causal_circuits as cc

    rows = []
    for n_ctx in arguments.lengths:
        task = cc.InContextTask(make_graph(n_ctx), d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            for variant in VARIANTS:
                name = f"length {n_ctx} seed {seed} {variant.name}"
                rows.append(units.made(name, partial(measure_run, variant, task, arguments, seed)))
                bar.update()
    return rows


def measure_run(variant: object, task: object, arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    """Both stages of one run; attention after stage 1, loss gap after each stage."""
    from algorithm_1 import (
        SEED_STRIDE,
        empty_model,
        first_stage,
        has_every_token,
        match_strength,
        parent_attention,
        run_stage,
        second_stage,
    )

    import causal_circuits as cc

    began, (first, second), n_ctx = time.perf_counter(), arguments.steps, task.n_ctx
    model = empty_model(variant, task)
    watched = cc.RecordAt.log_spaced(12).within(first) if variant.reduced else ()
    record = run_stage(
        model,
        task,
        first_stage(variant, task, first),
        beta0=variant.beta0,
        batch_size=arguments.batch_size,
        seed=seed,
        record_steps=watched,
    )
    # A1's softmax is the same for all sequences; in the full model attention is averaged over some.
    tokens = task.sample(16 if variant.reduced else 128, seed=(seed, 3)).tokens
    missed = 1.0 - parent_attention(cc.mean_attention(model, tokens)[0, 0], task).double()
    test = task.sample(arguments.test, seed=(seed, 2))
    entropy = cc.cross_entropy(test.target_probs, test.target_probs)
    after_stage_1 = cc.evaluate(model, test) - entropy
    run_stage(
        model,
        task,
        second_stage(variant, second),
        beta0=None,
        batch_size=arguments.batch_size,
        seed=seed + SEED_STRIDE,
    )
    gaps = cc.evaluate(model, test) - entropy
    whole = has_every_token(test.tokens, task.d_vocab)
    trajectory = (
        []
        if record.attention is None
        else [
            [step, float(1 - parent_attention(attention[0, 0], task).mean())]
            for step, attention in zip(record.steps, record.attention, strict=True)
        ]
    )
    return {
        "variant": variant.name,
        "n_ctx": n_ctx,
        "seed": seed,
        "missed_attention": float(missed.mean()),
        "most_missed_attention": float(missed.max()),
        "loss_gap_after_stage_1": float(after_stage_1.mean()),
        "loss_gap": float(gaps.mean()),
        "loss_gap_with_all_tokens": float(gaps[whole].mean()),
        "edge_posterior_gap": task.bayes_loss(test) - float(entropy.mean()),
        "match_strength": match_strength(model) if variant.reduced else float("nan"),
        "share_without_some_token": 1.0 - float(whole.double().mean()),
        "trajectory": trajectory,
        "seconds": time.perf_counter() - began,
    }


def measure_figure_9(arguments: argparse.Namespace, units: object, bar: object) -> list[dict[str, object]]:
    """One row, and one unit, for each variant and each of the paper's 20 forests."""
    from algorithm_1 import VARIANTS

    rows = []
    for index, parents in enumerate(read_figure_9()[: arguments.figure_9]):
        for variant in VARIANTS:
            make = partial(measure_forest, variant, parents, arguments.seed, index)
            rows.append(units.made(f"figure 9 graph {index} {variant.name}", make))
            bar.update()
    return rows


def measure_forest(variant: object, parents: list[int], seed: int, index: int) -> dict[str, object]:
    """Attention to the parents after stage 1 alone at (d_vocab 3, n_ctx 20, alpha .1)."""
    from algorithm_1 import empty_model, first_stage, parent_attention, run_stage

    import causal_circuits as cc

    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=0.1)
    tokens = task.sample(2048, seed=(seed, 4, index)).tokens
    model = empty_model(variant, task)
    run_stage(model, task, first_stage(variant, task, 100), beta0=variant.beta0, batch_size=1024, seed=seed)
    pattern = cc.mean_attention(model, tokens[: 16 if variant.reduced else 2048])[0, 0]
    attention = parent_attention(pattern, task)
    return {
        "graph": index,
        "variant": variant.name,
        "edges": len(attention),
        "mean_parent_attention": float(attention.mean()),
        "min_parent_attention": float(attention.min()),
        "parents_row_maximum": sum(
            int(pattern[child, :child].argmax()) == parent for parent, child in cc.latent_edges(task.graph)
        ),
    }


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    from algorithm_1 import VARIANTS  # after parsing: torch takes seconds to import
    from going_on import Units
    from results_file import begin
    from studies import check_counts, check_lengths, graph_maker
    from tqdm.auto import tqdm
    from two_stage_page import finish

    import causal_circuits as cc

    try:
        check_counts(arguments, seeds=1, steps=1, batch_size=1, test=2, figure_9=0, lengths=3)
        check_lengths(arguments.lengths)
        make_graph = graph_maker(arguments.graph)
        for n_ctx in arguments.lengths:
            cc.InContextTask(make_graph(n_ctx), d_vocab=arguments.d_vocab, alpha=arguments.alpha)
            if not cc.latent_edges(make_graph(n_ctx)):
                raise ValueError(f"--graph {arguments.graph} has no edge at n_ctx {n_ctx}: choose a longer context")
        begin(arguments)
        units = Units.of(parser.prog, arguments)
    except ValueError as error:
        parser.error(str(error))
    n_runs = len(VARIANTS) * (len(arguments.lengths) * arguments.seeds + min(arguments.figure_9, 20))
    with tqdm(total=n_runs, desc="Algorithm 1", unit="run", disable=True if arguments.quiet else None) as bar:
        figure_9 = measure_figure_9(arguments, units, bar)
        lengths = measure_lengths(arguments, make_graph, units, bar)
    print(finish(arguments, units, lengths, figure_9))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
