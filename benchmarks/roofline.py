"""How far the fused step is from the machine's limit: the least arithmetic and bytes of a step, and what was reached.

The least arithmetic of a sequence (two layers, one head each), counted by hand: 36 flop for each causal pair (scores,
softmax, P r, P^T p, P c, P^T dt, the rank-two backward and its sums), 12 d0^2 for the three products with A2's dense
half, 18 d0 d_vocab for W_U, d0 = d_vocab + n_ctx. The least traffic is tokens and targets once, and weights and
gradients once a batch. The machine's rates are measured here: a large float32 matrix product, and a copy, on all of
torch's threads.

    python benchmarks/roofline.py --out roofline.json
"""

from pathlib import Path

import torch
import tyro
from measuring import gradient_on_all_cores, median_seconds, tell

import causal_circuits as cc

SIZES = [(10, 20, 1024), (3, 20, 1024), (10, 100, 256), (10, 200, 128)]


def least_flop(d_vocab: int, n_ctx: int) -> float:
    """Of one sequence, one head a layer.

    >>> round(least_flop(10, 20) / 1000), round(least_flop(10, 100) / 1000), round(least_flop(10, 200) / 1000)
    (24, 347, 1290)
    """
    d0, pairs = d_vocab + n_ctx, n_ctx * (n_ctx + 1) / 2
    return 36 * pairs + 12 * d0**2 + 18 * d0 * d_vocab


def least_bytes(d_vocab: int, n_ctx: int, batch: int) -> float:
    """Of one sequence: its tokens and target, and its share of reading weights and writing gradients."""
    d0 = d_vocab + n_ctx
    parameters = d0**2 + 4 * d0**2 + 4 * d0 * d_vocab
    return 8 * n_ctx + 4 * d_vocab + 2 * 4 * parameters / batch


def machine_rates(repeats: int) -> tuple[float, float]:
    """(flop/s of a 2,048-wide float32 matrix product, bytes/s of a 256 MB copy, read and written)."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    flop = 2 * 2048**3 / median_seconds(lambda: a @ b, repeats)
    source = torch.zeros(64 * 2**20 // 4 * 4)
    target = torch.empty_like(source)
    return flop, 2 * 4 * source.numel() / median_seconds(lambda: target.copy_(source), repeats)


def main(repeats: int = 15, out: Path | None = None) -> None:
    """Print a row a size."""
    flop_rate, copy_rate = machine_rates(5)
    print(f"matrix product {flop_rate / 1e9:.0f} GFLOP/s, copy {copy_rate / 1e9:.0f} GB/s")
    rows = list[dict[str, object]]()
    for d_vocab, n_ctx, batch in SIZES:
        task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
        model = cc.models.warm_start(cc.disentangled_transformer(d_vocab, n_ctx))
        per_s = batch / median_seconds(gradient_on_all_cores(model, task.sample(batch)), repeats)
        flop, traffic = least_flop(d_vocab, n_ctx), least_bytes(d_vocab, n_ctx, batch)
        shares = {"share_of_matrix_rate": per_s * flop / flop_rate, "share_of_copy_rate": per_s * traffic / copy_rate}
        row = {"d_vocab": d_vocab, "n_ctx": n_ctx, "batch": batch, "train_per_s": per_s}
        rows.append({**row, "least_flop": flop, "least_bytes": traffic, **shares})
        tell(rows, out, matrix_flop_per_s=flop_rate, copy_bytes_per_s=copy_rate)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
