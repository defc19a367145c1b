"""The kernels as a machine compiles them that has other vectors: 16 lanes, and no instruction to look up in registers.

A step of .ci/run with a process of its own, because numba compiles for one machine only; no test of pytest's, because
the kernels take half a minute to compile. `python tests/other_lanes.py`
"""

import os
import tempfile

import llvmlite.binding


def pretend_to_be_another_machine() -> None:
    """What decides on lanes and look-ups, before the package asks; the instructions stay those that this one has."""
    features = llvmlite.binding.get_host_cpu_features()
    os.environ["NUMBA_CPU_NAME"] = llvmlite.binding.get_host_cpu_name()
    os.environ["NUMBA_CPU_FEATURES"] = features.flatten()
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()  # kernels there are made for the machine, not for its lanes
    features.update({"avx512f": True, "avx2": False})
    llvmlite.binding.get_host_cpu_features = lambda: features


def check(d_vocab: int, n_ctx: int, n_heads: tuple[int, int]) -> None:
    """Sequences as numpy draws them; gradients as autograd has them in float64."""
    import torch
    from assertions import assert_close

    import causal_circuits as cc
    from causal_circuits import simd
    from causal_circuits.models.fused import fused_step
    from causal_circuits.simd import functions, lanes

    assert (lanes.LANES, functions.HAS_PERMUTE) == (16, False)
    task, available = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab), simd.available
    batch = task.sample(19, seed=2)
    simd.available = lambda: False
    drawn_by_numpy = task.sample(19, seed=2)
    simd.available = available
    assert torch.equal(batch.tokens, drawn_by_numpy.tokens)
    torch.testing.assert_close(batch.target_probs, drawn_by_numpy.target_probs, atol=1e-5, rtol=0)

    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.4, seed=1)
    loss = fused_step(model, batch.tokens, batch.target_probs).loss
    found = [parameter.grad.double() for parameter in model.parameters() if parameter.requires_grad]
    model = model.double()
    model.zero_grad()
    expected = cc.training.mean_loss(model, batch.to("cpu", torch.float64))
    expected.backward()
    assert abs(loss - expected.item()) < 1e-5 * abs(loss)
    for gradient, parameter in zip(found, (p for p in model.parameters() if p.requires_grad), strict=True):
        assert_close(gradient, parameter.grad, 1e-5)
    print(f"d_vocab {d_vocab}, n_ctx {n_ctx}, heads {n_heads}: equal")


if __name__ == "__main__":
    pretend_to_be_another_machine()
    for sizes in ((3, 6, (2, 1)), (5, 18, (1, 2)), (19, 7, (1, 1)), (40, 5, (1, 1))):
        check(*sizes)
