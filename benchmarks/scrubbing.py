"""Does causal scrubbing leave the paper's hypothesis standing - on every graph and seed, or on one model?

Trains from a warm start on the chain, the pairs graph and a random forest, several seeds of data each, and scrubs both
claims: held to the positions with parents, of which the paper speaks ("children"), and with the further claim that the
model uses nothing else ("everywhere"). The share of the loss kept: 1 if the claim is all there is to it, 0 if empty.

    python benchmarks/scrubbing.py --out scrubbing.json
"""

import argparse
from pathlib import Path

from measuring import NO_RECORD, write

import causal_circuits as cc


def graphs(n_ctx: int) -> dict[str, object]:
    """The graphs by name."""
    return {
        "chain": cc.chain_graph(n_ctx),
        "pairs": cc.pairs_graph(n_ctx),
        "forest": cc.random_forest(n_ctx, 0.5, seed=0),
        "other forest": cc.random_forest(n_ctx, 0.4, seed=1),
    }


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-vocab", type=int, default=3)
    parser.add_argument("--n-ctx", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=2048)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    tasks = {
        (name, seed): cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=0.1)
        for name, graph in graphs(arguments.n_ctx).items()
        for seed in range(arguments.seeds)
    }
    models = [cc.disentangled_transformer(arguments.d_vocab, arguments.n_ctx) for _ in tasks]
    configs = [cc.TrainConfig.warm(arguments.steps, seed=seed) for _, seed in tasks]
    cc.train_ensemble(models, list(tasks.values()), configs, record=NO_RECORD)
    rows = []
    print("graph         seed  where       copy  match  both   loss, whole model, free resampling")
    for (name, seed), model in zip(tasks, models, strict=True):
        task = tasks[name, seed]
        batch = task.sample(arguments.sequences, seed=(seed, 3))
        for where in ("children", "everywhere"):
            found = {c: cc.scrub_hypothesis(model, batch, task, c, where=where) for c in ("copy", "match", "both")}
            both = found["both"]
            kept = {claim: scrubbed.recovered for claim, scrubbed in found.items()}
            rows.append({"graph": name, "seed": seed, "where": where, **kept, "loss": both.loss})
            print(
                f"{name:13s} {seed:4d}  {where:10s} {kept['copy']:5.3f}  {kept['match']:5.3f}  {kept['both']:5.3f}  "
                f"{both.loss:.3f}, {both.baseline_loss:.3f}, {both.random_loss:.3f}"
            )
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
