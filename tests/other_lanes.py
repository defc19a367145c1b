"""The kernels as a machine compiles them that has other vectors: 16 lanes where this one has 8, 8 where it has 16, and
no instruction to look up in registers.

A step of .ci/run with a process of its own, because numba compiles for one machine only; no test of pytest's, because
the kernels take half a minute to compile. `python tests/other_lanes.py`
"""

import os
import tempfile

import llvmlite.binding


def pretend_to_be_another_machine(cache: str) -> int:
    """What decides on lanes and look-ups, before the package asks; the instructions stay those that this one has.

    Returns how many lanes the other machine has.
    """
    features = llvmlite.binding.get_host_cpu_features()
    os.environ["NUMBA_CPU_NAME"] = llvmlite.binding.get_host_cpu_name()
    os.environ["NUMBA_CPU_FEATURES"] = features.flatten()
    os.environ["NUMBA_CACHE_DIR"] = cache  # kept kernels are named by the machine, not by its lanes
    features.update({"avx512f": not features.get("avx512f"), "avx2": False})
    llvmlite.binding.get_host_cpu_features = lambda: features
    return 16 if features["avx512f"] else 8


def check(n_lanes: int, d_vocab: int, n_ctx: int, n_heads: tuple[int, int]) -> None:
    """Sequences as numpy draws them; loss and gradients as autograd has them in float64."""
    import pytest
    from test_fused import assert_fused_equals_autograd, draw
    from test_tasks import assert_the_same_without_numba

    import causal_circuits as cc
    from causal_circuits.simd import functions, lanes

    assert n_lanes == lanes.LANES
    assert not functions.HAS_PERMUTE
    task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab)
    assert_the_same_without_numba(task, 700, 3, pytest.MonkeyPatch())
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.4, seed=1)
    assert_fused_equals_autograd(model, *draw(d_vocab, n_ctx, batch=19))
    print(f"{n_lanes} lanes, d_vocab {d_vocab}, n_ctx {n_ctx}, heads {n_heads}: equal")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        n_lanes = pretend_to_be_another_machine(folder)
        for sizes in ((3, 6, (2, 1)), (5, 18, (1, 2)), (19, 7, (1, 1)), (40, 5, (1, 1)), (3, 520, (1, 1))):
            check(n_lanes, *sizes)
