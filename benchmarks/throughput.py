"""How many sequences a second: the sampler, a training step, both end to end, and the plain forwards beside them.

Everything is timed in one process, each figure as the median of repeated runs, so that ratios hold on a noisy machine.
The fused step is timed with the kernel that long runs compile for their own sizes; `general_train_per_s` is the one
that serves all sizes.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --size 10,20,1+1,1024 --out throughput.json

A size is d_vocab,n_ctx,heads,batch with heads such as 1+1 or 2+1.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import end_to_end, freeze, gradient_on_all_cores, median_seconds, write

import causal_circuits as cc
from causal_circuits.models import fused
from causal_circuits.training import mean_loss

DEFAULT_SIZES = ["10,20,1+1,1024", "3,20,1+1,1024", "5,32,2+1,1024", "10,100,1+1,256", "10,200,1+1,128"]

LONG = fused.FREEZE_FROM


def naive_logits(model: object, tokens: torch.Tensor) -> torch.Tensor:
    """A disentangled transformer in einsums over the whole residual stream: the obvious way to write it."""
    layout = cc.models.layout_of(model)
    one_hot = torch.nn.functional.one_hot(tokens, layout.d_vocab).float()
    position = torch.eye(layout.n_ctx).expand(len(tokens), -1, -1)
    residual = torch.cat([one_hot, position], dim=-1)
    future = torch.ones(layout.n_ctx, layout.n_ctx, dtype=torch.bool).triu(1)
    for layer, heads in enumerate(layout.n_heads):
        width, copies = layout.width(layer), [residual]
        for head in range(heads):
            weights = model.blocks[layer].attn.W_Q[head, :width, :width]
            scores = torch.einsum("bid,de,bje->bij", residual, weights, residual).masked_fill(future, -torch.inf)
            copies.append(torch.einsum("bij,bjd->bid", scores.softmax(dim=-1), residual))
        residual = torch.cat(copies, dim=-1)
    return residual[:, -1] @ model.W_U


def measure(d_vocab: int, n_ctx: int, heads: tuple[int, int], batch_size: int, repeats: int) -> dict[str, object]:
    """One row of the table."""
    task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
    batch = task.sample(batch_size)
    model = cc.warm_start(cc.disentangled_transformer(d_vocab, n_ctx, heads))

    def with_autograd(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        model.zero_grad()
        loss = -(batch.target_probs * forward(batch.tokens).log_softmax(dim=-1)).sum(dim=-1).mean()
        loss.backward()

    def structured_step() -> None:
        model.zero_grad()
        mean_loss(model, batch).backward()

    slow = max(5, repeats // 3)
    large = max(batch_size, 16_384 * 20 // n_ctx)
    freeze(LONG)
    row: dict[str, object] = {"d_vocab": d_vocab, "n_ctx": n_ctx, "heads": list(heads), "batch": batch_size}
    row["sampler_per_s"] = large / median_seconds(lambda: task.sample(large), repeats)
    row["general_train_per_s"] = batch_size / median_seconds(gradient_on_all_cores(model, batch), repeats)
    freeze()
    row["train_per_s"] = batch_size / median_seconds(gradient_on_all_cores(model, batch), repeats)
    row["end_to_end_per_s"] = end_to_end(task, heads, batch_size, steps=max(20, 4_000_000 // (batch_size * n_ctx)))
    row["structured_torch_per_s"] = batch_size / median_seconds(structured_step, slow)
    row["plain_transformer_lens_per_s"] = batch_size / median_seconds(
        lambda: with_autograd(lambda tokens: model(tokens)[:, -1]), slow
    )
    row["naive_einsum_per_s"] = batch_size / median_seconds(
        lambda: with_autograd(lambda tokens: naive_logits(model, tokens)), slow
    )
    return row


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", metavar="S,T,H,B", help=f"default {' '.join(DEFAULT_SIZES)}")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each figure, default 15")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.size or DEFAULT_SIZES:
        d_vocab, n_ctx, heads, batch = size.split(",")
        first, second = map(int, heads.split("+"))
        rows.append(measure(int(d_vocab), int(n_ctx), (first, second), int(batch), arguments.repeats))
        row = rows[-1]
        ratio = row["end_to_end_per_s"] / row["plain_transformer_lens_per_s"]
        print(f"(d_vocab {d_vocab}, n_ctx {n_ctx}, heads {heads}, batch {batch})")
        for name, value in row.items():
            if name.endswith("_per_s"):
                print(f"  {name:30s} {value:>12,.0f}")
        print(f"  end to end / plain TransformerLens forward and backward alone: {ratio:.1f}x", flush=True)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
