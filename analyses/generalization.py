"""Claim: trained on one prior, a model predicts under kernels of others, better in longer contexts.

Theorem 2 of the paper: for any kernel pi~ with entries bounded below, f tends to pi~(. | s_T), uniformly. Algorithm 1
trains models at one alpha; they are then run on kernels of other alphas, on sparse, sticky, periodic and
near-deterministic ones, and on kernels that a search makes as bad as it can, all with entries >= gamma / d_vocab (but
for the losses of the Dirichlet families: they are over the prior itself, whose entries have no bound, so that Theorem 2
says nothing of them).
A Dirichlet prior covers all kernels, so these tests weigh kernels otherwise and exclude none; models are therefore also
trained on one restricted family alone (`--restricted`), and tested on kernels of the others that differ from every
training kernel by .2 or more in some entry.

    excess        loss minus the family's own edge posterior, what counting edges gives when told the family: over all
                  contexts, and over those that hold every token (where one is absent the reduced model says 0)
    |f - pi~|     largest over tokens, mean over sequences, largest over query tokens and kernels
    |f - pi^|     the same against pi^, the frequencies with which tokens followed the query's token along the edges

The first distance cannot vanish faster than pi^ converges to pi~, whatever the model; the second is the model's own.

    python analyses/generalization.py                     # about five minutes
    python analyses/generalization.py --alpha 0.3 --gamma 0.2 --graph forest
    python analyses/generalization.py --quick             # seconds

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json and
figures/.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain

from command_line import base_parser, exit_status, parse

QUICK = {
    "lengths": [8, 20],
    "seeds": 1,
    "full_up_to": 8,
    "restricted": ["sticky"],
    "steps": [60, 60],
    "kernels": 64,
    "test": 256,
    "starts": 6,
    "rounds": 2,
}


MARGIN = 0.2  # a kernel counts as excluded by training if it differs by so much from each training kernel


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "generalization")
    lengths = [10, 20, 40, 80, 160]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, metavar="T", help="default 10 20 40 80 160")
    parser.add_argument("--seeds", type=int, default=2, help="reduced models at each length (default 2)")
    parser.add_argument(
        "--full-up-to", type=int, default=40, metavar="T", help="longest context of the full model (default 40)"
    )
    parser.add_argument("--graph", default="chain", metavar="NAME", help="chain, pairs or forest (default chain)")
    parser.add_argument("--d-vocab", type=int, default=3, metavar="S", help="number of tokens (default 3)")
    parser.add_argument("--alpha", type=float, default=1.0, help="concentration in training (default 1)")
    parser.add_argument(
        "--restricted",
        nargs="*",
        default=["sticky", "periodic"],
        metavar="NAME",
        help="families to train on alone: sticky, sparse, periodic or near-deterministic (default sticky periodic)",
    )
    parser.add_argument("--gamma", type=float, default=0.1, help="entries are at least gamma / d_vocab (default 0.1)")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[100, 200], metavar="N", help="of stage 1 and 2 (default 100 200)"
    )
    parser.add_argument("--kernels", type=int, default=512, help="kernels that stand for a family (default 512)")
    parser.add_argument("--test", type=int, default=1024, help="test sequences a family (default 1024)")
    parser.add_argument("--starts", type=int, default=48, help="random kernels the search starts from (default 48)")
    parser.add_argument("--rounds", type=int, default=40, help="of the search for the worst kernel (default 40)")
    parser.add_argument("--quick", action="store_true", help="two lengths, one seed, a short search: seconds")
    return parser, parse(parser, QUICK)


def trained(variant: object, task: object, arguments: argparse.Namespace, seed: int) -> object:
    """Both stages of Algorithm 1."""
    from algorithm_1 import SEED_STRIDE, empty_model, first_stage, run_stage, second_stage

    model = empty_model(variant, task)
    first, second = arguments.steps
    run_stage(model, task, first_stage(variant, task, first), beta0=variant.beta0, batch_size=512, seed=seed)
    run_stage(model, task, second_stage(variant, second), beta0=None, batch_size=512, seed=seed + SEED_STRIDE)
    return model


def measure_model(variant: object, task: object, arguments: argparse.Namespace, seed: int) -> dict[str, list]:
    """Train one model, and measure it on every family of kernels and on the worst that a search finds."""
    from algorithm_1 import match_strength

    model = trained(variant, task, arguments, seed)
    labels = {"model": variant.name, "n_ctx": task.n_ctx, "seed": seed}
    strength = {"match_strength": match_strength(model) if variant.reduced else float("nan")}
    return {
        "families": measure_families(model, task, arguments, labels),
        "worst": measure_worst(model, task, arguments, labels | strength, seed),
    }


def measure_families(
    model: object, task: object, arguments: argparse.Namespace, labels: dict[str, object]
) -> list[dict[str, object]]:
    """Loss against the family's own edge posterior, and the uniform error, on every family of kernels."""
    import causal_circuits as cc

    rows = []
    for index, family in enumerate(cc.KERNEL_FAMILIES):
        own, kernels = family_task(family, task, arguments, seed=arguments.seed + index)
        measured = measure_family(model, task, own, kernels, arguments, index)
        rows.append({**labels, "family": family, **measured})
    return rows


def measure_family(
    model: object, task: object, own: object, kernels: object, arguments: argparse.Namespace, index: int
) -> dict[str, float]:
    """A model trained on `task`, on sequences of `own`, whose prior `kernels` are drawn from."""
    from algorithm_1 import has_every_token

    import causal_circuits as cc

    test = own.sample(arguments.test, seed=(arguments.seed, 6, index))
    losses = cc.evaluate(model, test)
    posterior = cc.cross_entropy(own.bayes_predictor(test.tokens), test.target_probs)
    excess, whole = losses - posterior, has_every_token(test.tokens, task.d_vocab)
    return {
        "loss": float(losses.mean()),
        "entropy": float(cc.cross_entropy(test.target_probs, test.target_probs).mean()),
        "own_edge_posterior": float(posterior.mean()),
        "training_edge_posterior": task.bayes_loss(test),
        "excess": float(excess.mean()),
        "excess_error": float(excess.std() / len(test) ** 0.5),
        # where a token is absent the reduced model says 0, and its loss is log(1e-9)
        "share_with_all_tokens": float(whole.double().mean()),
        "excess_with_all_tokens": float(excess[whole].mean()),
        **uniform_errors(model, task, kernels[: max(2, arguments.kernels // 32)], seed=arguments.seed + 7),
    }


def measure_restricted(
    variant: object, family: str, graph: object, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Train on one family of kernels alone; a row for each other family, on its kernels that training excludes."""
    from algorithm_1 import parent_attention

    import causal_circuits as cc

    common = {"n": arguments.kernels, "d_vocab": arguments.d_vocab, "gamma": arguments.gamma}
    known = cc.kernel_family(family, seed=arguments.seed + 100, **common)
    task = cc.InContextTask(graph, arguments.d_vocab, kernels=known)
    model, rows = trained(variant, task, arguments, arguments.seed), []
    pattern = cc.mean_attention(model, task.sample(128, seed=(arguments.seed, 3)).tokens)[0, 0]
    attention = float(parent_attention(pattern, task).mean())
    for index, other in enumerate(cc.KERNEL_FAMILIES):
        kernels = cc.kernel_family(other, seed=arguments.seed + index, **common)
        excluded = outside(kernels, known)
        if other == family or len(excluded) < 2:
            continue
        own = cc.InContextTask(graph, arguments.d_vocab, kernels=excluded)
        labels = {"model": variant.name, "n_ctx": task.n_ctx, "trained_on": family, "family": other}
        share = {"parent_attention": attention, "share_of_kernels_excluded": len(excluded) / len(kernels)}
        rows.append({**labels, **share, **measure_family(model, task, own, excluded, arguments, index)})
    return rows


def outside(kernels: object, known: object) -> object:
    """The kernels that differ from every known one by MARGIN or more in some entry."""
    import numpy as np

    nearest = [float(np.abs(known - kernel).max(axis=(1, 2)).min()) for kernel in kernels]
    return kernels[np.array(nearest) >= MARGIN]


def family_task(family: str, task: object, arguments: argparse.Namespace, seed: int) -> tuple[object, object]:
    """The task whose prior is the family, and kernels of it that are bounded below.

    Dirichlet families are the prior itself, whose edge posterior is in closed form; the others are a uniform draw
    from `--kernels` kernels, whose edge posterior is the mixture over these.
    """
    import causal_circuits as cc

    kernels = cc.kernel_family(family, arguments.kernels, task.d_vocab, gamma=arguments.gamma, seed=seed)
    name, _, alpha = family.partition(" ")
    prior = {"alpha": float(alpha)} if name == "dirichlet" else {"kernels": kernels}
    return cc.InContextTask(task.graph, task.d_vocab, **prior), kernels


def predictors(model: object, task: object) -> dict[str, Callable]:
    """Tokens to probabilities: the model, the training prior's edge posterior, and bare frequencies along the edges."""
    import causal_circuits as cc

    frequencies = cc.InContextTask(task.graph, task.d_vocab, alpha=1e-4)  # a prior too weak to be seen
    return {
        "model": lambda tokens: cc.log_probs(model, tokens).exp(),
        "edge_posterior": task.bayes_predictor,
        "frequencies": frequencies.bayes_predictor,
    }


def uniform_errors(model: object, task: object, kernels: object, seed: int, n: int = 512) -> dict[str, float]:
    """The largest error over query tokens and kernels: of the model, the posterior and the frequencies, and between."""
    import numpy as np

    import causal_circuits as cc

    known = predictors(model, task)

    def largest(name: str, reference: str | None = None) -> float:
        errors = [
            cc.prediction_errors(
                known[name], task.graph, kernel, n_sequences=n, seed=seed, reference=known.get(reference)
            )
            for kernel in kernels
        ]
        return float(np.nanmax(errors))

    return {
        "uniform_error": largest("model"),
        "uniform_error_of_edge_posterior": largest("edge_posterior"),
        "uniform_error_of_frequencies": largest("frequencies"),
        "uniform_error_from_frequencies": largest("model", "frequencies"),
    }


def measure_worst(
    model: object, task: object, arguments: argparse.Namespace, labels: dict[str, object], seed: int
) -> list[dict[str, object]]:
    """The worst kernel that a search finds, against the kernel's row and against frequencies; judged on fresh draws."""
    import numpy as np

    import causal_circuits as cc

    known, rows = predictors(model, task), []
    for against, reference in (("kernel", None), ("frequencies", known["frequencies"])):

        def score(kernel: object, reference: object = reference) -> float:
            return float(
                np.nanmax(
                    cc.prediction_errors(
                        known["model"], task.graph, kernel, n_sequences=256, seed=seed, reference=reference
                    )
                )
            )

        worst = cc.worst_kernel(
            score, task.d_vocab, gamma=arguments.gamma, n_start=arguments.starts, n_rounds=arguments.rounds, seed=seed
        )
        law = cc.tasks.transition_matrices.stationary_law(worst.kernel[None])[0]
        errors = cc.prediction_errors(
            known["model"], task.graph, worst.kernel, n_sequences=4096, seed=seed + 1, reference=reference
        )
        rows.append(
            {
                **labels,
                "against": against,
                "start_error": worst.start_error,
                "found_error": worst.error,
                "kernel": worst.kernel.tolist(),
                "share_of_worst_query": float(law[np.nanargmax(errors)]),
                **uniform_errors(model, task, [worst.kernel], seed=seed + 1, n=4096),
            }
        )
    return rows


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    from algorithm_1 import FULL_ADAM, GRADIENT_DESCENT  # after parsing: torch takes seconds to import
    from generalization_page import finish
    from going_on import Units
    from results_file import begin
    from studies import check_counts, check_lengths, graph_maker
    from tqdm.auto import tqdm

    import causal_circuits as cc

    try:
        check_counts(arguments, seeds=1, steps=1, kernels=16, test=16, starts=1, rounds=0, lengths=3)
        check_lengths(arguments.lengths)
        cc.bounded_below(cc.kernel_family("sticky", 1, arguments.d_vocab), arguments.gamma)
        for name in arguments.restricted:
            if name not in cc.KERNEL_FAMILIES or name.startswith("dirichlet"):
                raise ValueError(f"--restricted must name sticky, sparse, periodic or near-deterministic: got {name!r}")
        make_graph = graph_maker(arguments.graph)
        tasks = [cc.InContextTask(make_graph(n), arguments.d_vocab, arguments.alpha) for n in arguments.lengths]
        begin(arguments)
        units = Units.of(parser.prog, arguments)
    except ValueError as error:
        parser.error(str(error))
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    full = [task for task in tasks if task.n_ctx <= arguments.full_up_to]
    runs = chain(
        ((GRADIENT_DESCENT, task, seed) for task in tasks for seed in seeds),
        ((FULL_ADAM, task, arguments.seed) for task in full),
    )
    alone = [(GRADIENT_DESCENT, name, task) for name in arguments.restricted for task in tasks]
    alone += [(FULL_ADAM, name, task) for _, name, task in alone if task.n_ctx <= arguments.full_up_to]
    families, worst, restricted = [], [], []
    n_models = len(tasks) * arguments.seeds + len(full) + len(alone)
    with tqdm(total=n_models, desc="generalization", unit="model", disable=True if arguments.quiet else None) as bar:
        for variant, task, seed in runs:
            make = partial(measure_model, variant, task, arguments, seed)
            found = units.made(f"{variant.name} n_ctx {task.n_ctx} seed {seed}", make)
            families += found["families"]
            worst += found["worst"]
            bar.update()
        for variant, name, task in alone:
            make = partial(measure_restricted, variant, name, task.graph, arguments)
            restricted += units.made(f"{variant.name} n_ctx {task.n_ctx} trained on {name}", make)
            bar.update()
    print(finish(arguments, units, families, worst, restricted))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
