"""How far the fused step is from the machine's limit: the least arithmetic and bytes of a step, and what was reached.

The least arithmetic of a sequence (two layers, one head each), counted by hand: 36 flop for each causal pair (scores,
softmax, P r, P^T p, P c, P^T dt, the rank-two backward and its sums), 12 d0^2 for the three products with A2's dense
half, 18 d0 d_vocab for W_U, d0 = d_vocab + n_ctx. The least traffic is tokens and targets once, and weights and
gradients once a batch. The machine's rates are measured here: a large float32 matrix product, and a copy, on all of
torch's threads.

    python benchmarks/roofline.py --out roofline.json
    python benchmarks/roofline.py --stages        # where a step's time goes; needs a C++ compiler

For the latter, stages are left out of `src/native/step.cpp` by replacing their calls; every variant is compiled for
this machine and all are timed in turn, on one thread. What follows a stage that is left out works on other numbers, in
the same time; shares need not add up to one, because the processor works on several stages at once.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import thread_time

import numpy as np
import torch
import tyro
from measuring import gradient_on_all_cores, median_seconds, tell

import causal_circuits as cc

NATIVE = Path(__file__).resolve().parents[1] / "src" / "native"
STAGES = {
    "nothing": [],
    "layer 0's pattern": [("exponential_column<SIZE, false>(work.heads[h], x, unit, s, rows)", "splat(1.0f)")],
    "layer 1's scores, P r": [("over_keys(rows, work.r + mh(m, h), unit, s)", "Floats{}")],
    "what layer 1 copies, P^T p": [("over_queries(columns(h), through, s, u);", "")],
    "back to layer 1's pattern, P c": [("over_keys(column(h, unit), c(m, 1 + h), unit, s)", "Floats{}")],
    "back to its queries, P^T dt": [("over_queries(columns(h), work.back + mh(m, h), s, work.u);", "")],
    "dS": [("differentiate(b, h, unit);", "")],
    "dS by the query's token": [("s.is_short ? multiply_by_query_token(b, h) : add_by_query_token(b, h);", "")],
    "dense products with A2 and W_U": [
        ("add_dense_products(size);", ""),
        (
            "multiply({work.features, s.wide_features, 1}, n, s.dense,",
            "if (n < 0) multiply({work.features, s.wide_features, 1}, n, s.dense,",
        ),
    ],
    "loss, and back through the read-out": [
        ("loss += logits(b, targets + (start + b) * s.n_tok);", ""),
        ("back_to_layer_1(b);", ""),
    ],
    "back through the last row": [("for (int b = 0; b < size; ++b) back_through_last_row(b);", "")],
    "packing weights, writing gradients": [
        (
            "pack(weights, work, s);",
            "thread_local Sizes packed{}; if (!(packed == sizes)) pack(weights, work, s); packed = sizes;",
        ),
        ("write_gradients(work.sums, gradients, s, share);", ""),
    ],
}
ENTRANCE = """
extern "C" void step(const int* size, const int32_t* x, const float* targets, int n, const float* weights, float* out) {
    const Sizes s{size[0], size[1], 1, 1, false};
    const size_t a2 = s.numbers(0), w = a2 + s.numbers(1);
    KERNELS_NAMESPACE::gradient(s, x, targets, n, {weights, weights + a2, weights + w}, {out, out + a2, out + w}, {},
                                1.0f / n);
}
"""
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


def step_without(stage: str) -> str:
    """The source of `step.cpp` without a stage."""
    source = (NATIVE / "step.cpp").read_text()
    for call, instead in STAGES[stage]:
        if source.count(call) != 1:
            raise ValueError(f"step.cpp must hold this call once: {call}")
        source = source.replace(call, instead)
    return source


def compiled(source: str, path: Path) -> Callable[..., None]:
    """The step as a function."""
    path.write_text(source + ENTRANCE)
    flags = [
        "-std=gnu++17",
        "-O3",
        "-march=native",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-w",
    ]
    command = [os.environ.get("CXX", "c++"), *flags, "-fPIC", "-shared", f"-I{NATIVE}", str(path), "-o", f"{path}.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(f"{path}.so").step


def tell_stages(repeats: int, out: Path | None) -> None:
    """What a step gains without a stage, as a share of its time: a row a size."""
    rows = list[dict[str, object]]()
    with TemporaryDirectory() as folder:
        steps = {name: compiled(step_without(name), Path(folder) / f"{i}.cpp") for i, name in enumerate(STAGES)}
        for d_vocab, n_ctx, _ in SIZES:
            rows.append({"d_vocab": d_vocab, "n_ctx": n_ctx, **stage_shares(steps, d_vocab, n_ctx, repeats)})
            tell(rows, out)


def stage_shares(steps: dict[str, Callable[..., None]], d_vocab: int, n_ctx: int, repeats: int) -> dict[str, float]:
    """The medians over rounds in which every variant runs once."""
    d0, n, generator = d_vocab + n_ctx, 128, np.random.default_rng(0)
    weights = (0.1 * generator.normal(size=5 * d0**2 + 4 * d0 * d_vocab + 16)).astype(np.float32)  # whole vectors
    tokens = generator.integers(d_vocab, size=(n, n_ctx)).astype(np.int32)
    targets = generator.dirichlet(np.ones(d_vocab), n).astype(np.float32)
    size, out = np.array([n_ctx, d_vocab], np.int32), np.empty_like(weights)
    at = [array.ctypes.data_as(ctypes.c_void_p) for array in (size, tokens, targets, weights, out)]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            began = thread_time()
            for _ in range(max(1, 400 // n_ctx)):
                step(*at[:3], n, *at[3:])
            times[name].append(thread_time() - began)
    whole = times.pop("nothing")
    return {
        name: 1 - median(part / one for part, one in zip(values[1:], whole[1:], strict=True))
        for name, values in times.items()
    }


def main(repeats: int = 15, stages: bool = False, out: Path | None = None) -> None:
    """Print a row a size; --stages: where a step's time goes, instead."""
    if stages:
        tell_stages(repeats, out)
        return
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
