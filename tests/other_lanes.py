"""The fused step as a machine compiles it that has other vectors: 16 lanes, and no instruction to look up in registers.

A step of .ci/run with a process of its own, because numba compiles for one machine only; no test of pytest's, because
the kernel takes half a minute to compile. `python tests/other_lanes.py`
"""

import os

import llvmlite.binding

features = llvmlite.binding.get_host_cpu_features()
os.environ["NUMBA_CPU_NAME"] = llvmlite.binding.get_host_cpu_name()
os.environ["NUMBA_CPU_FEATURES"] = features.flatten()  # instructions stay those that this machine has
features.update({"avx512f": True, "avx2": False})
llvmlite.binding.get_host_cpu_features = lambda: features

import torch  # noqa: E402  # after the change above
from assertions import assert_close  # noqa: E402

import causal_circuits as cc  # noqa: E402
from causal_circuits.models.fused import fused_step  # noqa: E402
from causal_circuits.simd import functions, lanes  # noqa: E402

assert (lanes.LANES, functions.HAS_PERMUTE) == (16, False)

for d_vocab, n_ctx, n_heads in ((3, 6, (2, 1)), (5, 18, (1, 2)), (19, 7, (1, 1)), (40, 5, (1, 1))):
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.4, seed=1)
    batch = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab).sample(19, seed=2)
    loss = fused_step(model, batch.tokens, batch.target_probs).loss
    found = [parameter.grad.double() for parameter in model.parameters() if parameter.requires_grad]
    model = model.double()
    model.zero_grad()
    expected = cc.training.mean_loss(model, batch.to("cpu", torch.float64))
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert abs(loss - expected.item()) < 1e-5 * abs(loss)
    for gradient, other in zip(found, gradients, strict=True):
        assert_close(gradient, other, 1e-5)
    print(d_vocab, n_ctx, *n_heads, "equal")
