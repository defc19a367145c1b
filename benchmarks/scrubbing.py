"""Does causal scrubbing leave the paper's hypothesis standing - on every graph and seed, or on one model?

Trains from a warm start on the chain, the pairs graph and a random forest, several seeds of data each, and scrubs both
claims: held to the positions with parents, of which the paper speaks ("children"), and with the further claim that the
model uses nothing else ("everywhere"). The share of the loss kept: 1 if the claim is all there is to it, 0 if empty.

    python benchmarks/scrubbing.py --out scrubbing.json
"""

from pathlib import Path

import tyro
from measuring import NO_RECORD, tell

import causal_circuits as cc


def graphs(n_ctx: int) -> dict[str, object]:
    """The graphs by name."""
    return {
        "chain": cc.chain_graph(n_ctx),
        "pairs": cc.pairs_graph(n_ctx),
        "forest": cc.random_forest(n_ctx, 0.5, seed=0),
        "other forest": cc.random_forest(n_ctx, 0.4, seed=1),
    }


def main(
    d_vocab: int = 3, n_ctx: int = 20, steps: int = 1500, seeds: int = 3, sequences: int = 2048, out: Path | None = None
) -> None:
    """Print a row for each graph, seed and reading of the claim."""
    tasks = {
        (name, seed): cc.InContextTask(graph, d_vocab=d_vocab, alpha=0.1)
        for name, graph in graphs(n_ctx).items()
        for seed in range(seeds)
    }
    models = [cc.disentangled_transformer(d_vocab, n_ctx) for _ in tasks]
    configs = [cc.TrainConfig.warm(steps, seed=seed) for _, seed in tasks]
    cc.train_ensemble(models, list(tasks.values()), configs, record=NO_RECORD)
    rows = list[dict[str, object]]()
    for ((name, seed), task), model in zip(tasks.items(), models, strict=True):
        batch = task.sample(sequences, seed=(seed, 3))
        for where in ("children", "everywhere"):
            found = {c: cc.scrub_hypothesis(model, batch, task, c, where=where) for c in ("copy", "match", "both")}
            kept, both = {claim: scrubbed.recovered for claim, scrubbed in found.items()}, found["both"]
            losses = {"loss": both.loss, "whole model": both.baseline_loss, "free resampling": both.random_loss}
            rows.append({"graph": name, "seed": seed, "where": where, **kept, **losses})
            tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
