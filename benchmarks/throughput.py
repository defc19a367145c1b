"""How many sequences a second: the sampler, a training step, both end to end, and other ways to take the same step.

All are timed in one process, in turn, round by round: each figure is a median over rounds, each ratio the median of
the ratios within a round, so that ratios hold on a machine that other work slows down. The ratio in the last line is
end to end (sampling, gradient, Adam and the loop) over the gradient alone of the fastest of four baselines:

* structured torch: this package's forward without one-hot multiplications, by autograd;
* last-query matmul: dense products over the residual stream, layer 1 at the last query alone, by autograd;
* einsum: the whole residual stream in both layers, by autograd;
* plain TransformerLens: HookedTransformer's own forward, by autograd.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --size 10,20,1+1,1024 --out throughput.json
    python benchmarks/throughput.py --beside "python their_training.py {d_vocab} {n_ctx} {batch}"

A size is d_vocab,n_ctx,heads,batch with heads such as 1+1 or 2+1. --beside runs any other program once a round, in turn
with our end to end. The last line that it prints must be a number: the sequences a second that it trained on, by its
own clock, compilation left out. {d_vocab}, {n_ctx}, {heads} and {batch} in the command are replaced.
"""

import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from measuring import end_to_end, gradient_on_all_cores, rates_in_turn, write

import causal_circuits as cc
from causal_circuits.display import table_text
from causal_circuits.training import mean_loss

DEFAULT_SIZES = ("10,20,1+1,1024", "3,20,1+1,1024", "5,32,2+1,1024", "10,100,1+1,256", "10,200,1+1,128")
BASELINES = ("structured torch", "last-query matmul", "einsum", "plain TransformerLens")


def einsum_logits(model: object, tokens: torch.Tensor) -> torch.Tensor:
    """A disentangled transformer in einsums over the whole residual stream: the obvious way to write it."""
    layout = cc.models.layout_of(model)
    residual = embedding(layout, tokens)
    future = torch.ones(layout.n_ctx, layout.n_ctx, dtype=torch.bool).triu(1)
    for layer, heads in enumerate(layout.n_heads):
        width, copies = layout.width(layer), [residual]
        for head in range(heads):
            weights = model.blocks[layer].attn.W_Q[head, :width, :width]
            scores = torch.einsum("bid,de,bje->bij", residual, weights, residual).masked_fill(future, -torch.inf)
            copies.append(torch.einsum("bij,bjd->bid", scores.softmax(dim=-1), residual))
        residual = torch.cat(copies, dim=-1)
    return residual[:, -1] @ model.W_U


def matmul_logits(model: object, tokens: torch.Tensor) -> torch.Tensor:
    """The same in matrix products, layer 1 at the last query alone: what a dozen careful lines give."""
    layout = cc.models.layout_of(model)
    width, wider = layout.width(0), layout.width(1)
    x = embedding(layout, tokens)
    future = torch.ones(layout.n_ctx, layout.n_ctx, dtype=torch.bool).triu(1)
    copies = [x]
    for weights in model.blocks[0].attn.W_Q[: layout.n_heads[0], :width, :width]:
        scores = (x.flatten(0, 1) @ weights).view_as(x) @ x.mT
        copies.append(scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ x)
    residual = torch.cat(copies, dim=-1)
    last = [residual[:, -1]]
    for weights in model.blocks[1].attn.W_Q[: layout.n_heads[1], :wider, :wider]:
        scores = (residual @ (last[0] @ weights)[..., None])[..., 0]
        last.append((scores.softmax(dim=-1)[:, None] @ residual)[:, 0])
    return torch.cat(last, dim=-1) @ model.W_U


def embedding(layout: object, tokens: torch.Tensor) -> torch.Tensor:
    """One-hot tokens and positions, [batch, n_ctx, d_vocab + n_ctx]."""
    one_hot = torch.nn.functional.one_hot(tokens, layout.d_vocab).float()
    return torch.cat([one_hot, torch.eye(layout.n_ctx).expand(len(tokens), -1, -1)], dim=-1)


def steps_by_autograd(model: object, batch: cc.Batch) -> dict[str, Callable[[], object]]:
    """The gradient of a batch by every baseline."""

    def with_autograd(loss_of: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            loss_of().backward()

        return step

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        return -(batch.target_probs * logits.log_softmax(dim=-1)).sum(dim=-1).mean()

    losses = (
        lambda: mean_loss(model, batch),
        lambda: cross_entropy(matmul_logits(model, batch.tokens)),
        lambda: cross_entropy(einsum_logits(model, batch.tokens)),
        lambda: cross_entropy(model(batch.tokens)[:, -1]),
    )
    return {name: with_autograd(loss) for name, loss in zip(BASELINES, losses, strict=True)}


def other_program(command: str) -> float:
    """The sequences a second that a program prints last."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=False)
    said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    try:
        rate = float(said)
    except ValueError:
        rate = math.nan
    if done.returncode or not 0 < rate < math.inf:
        sys.exit(
            "throughput.py: error: the last line that --beside prints must be its sequences a second: status "
            f"{done.returncode}, last line {said[:80]!r}"
        )
    return rate


def measure(
    d_vocab: int, n_ctx: int, heads: tuple[int, int], batch_size: int, repeats: int, beside: str | None
) -> dict[str, object]:
    """One row of the table: medians and ratios."""
    task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
    batch = task.sample(batch_size)
    model = cc.models.warm_start(cc.disentangled_transformer(d_vocab, n_ctx, heads))
    large = max(batch_size, 16_384 * 20 // n_ctx)
    steps = max(20, 4_000_000 // (batch_size * n_ctx))
    timed = {"fused gradient": (gradient_on_all_cores(model, batch), batch_size)}
    timed |= {name: (step, batch_size) for name, step in steps_by_autograd(model, batch).items()}
    timed["sampler"] = (lambda: task.sample(large), large)
    rates = {"end to end": lambda: end_to_end(task, heads, batch_size, steps)}
    if beside:
        words = {"d_vocab": d_vocab, "n_ctx": n_ctx, "heads": "+".join(map(str, heads)), "batch": batch_size}
        rates["beside"] = lambda: other_program(beside.format(**words))
    rounds = rates_in_turn(timed, rates, repeats)
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    over = {
        name: statistics.median(ours / other for ours, other in zip(rounds["end to end"], rounds[name], strict=True))
        for name in (*BASELINES, *(["beside"] if beside else []))
    }
    row: dict[str, object] = {"d_vocab": d_vocab, "n_ctx": n_ctx, "heads": list(heads), "batch": batch_size}
    return row | {
        "per_s": medians,
        "end_to_end_over": over,
        "fastest_baseline": min(BASELINES, key=over.__getitem__),
        "rounds": rounds,
    }


def main(
    size: tuple[str, ...] = DEFAULT_SIZES,
    repeats: int = 9,
    threads: int | None = None,
    beside: str | None = None,
    out: Path | None = None,
) -> None:
    """Print a table a size; --threads 1 is fairest where other work runs."""
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = list[dict[str, object]]()
    for words in size:
        d_vocab, n_ctx, heads, batch = words.split(",")
        first, second = map(int, heads.split("+"))
        rows.append(measure(int(d_vocab), int(n_ctx), (first, second), int(batch), repeats, beside))
        row, over = rows[-1], rows[-1]["end_to_end_over"]
        print(f"{words}: sequences a second, and end to end over it")
        print(
            table_text(
                [{"what": name, "per s": round(rate), "over": over.get(name)} for name, rate in row["per_s"].items()]
            )
        )
        print(f"end to end over the fastest baseline ({row['fastest_baseline']}): {over[row['fastest_baseline']]:.1f}")
    write(out, rows, command=shlex.join(sys.argv))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
