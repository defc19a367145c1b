"""Models written under one version of TransformerLens are the same models under another.

    python tests/packaging/check_versions.py write FOLDER    # in the environment of one version
    python tests/packaging/check_versions.py read FOLDER     # in that of the other

`make test-3.9` does it both ways. Written: models of every kind in float32 and float64, as `cc.save_model` leaves them,
with the logits, the loss and the gradients that they have there, and a short training's weights and losses. Read: each
model is loaded with `cc.load_model`, and everything is computed again.
"""

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import causal_circuits as cc

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
GRAPHS = {"chain": cc.chain_graph(8), "two parents": cc.graph_from_parents([(), (), (0, 1), (1, 2), (0, 3), (3, 4)])}


def models() -> Iterator[tuple[str, cc.models.HookedTransformer]]:
    """A planted, a random two-headed and a reduced model in both precisions."""
    for dtype in TOLERANCE:
        kind = str(dtype).removeprefix("torch.")
        yield f"planted-{kind}", cc.plant_circuit(GRAPHS["two parents"], d_vocab=3).to(dtype)
        yield f"heads-{kind}", randomized(cc.disentangled_transformer(3, 8, n_heads=(2, 1), dtype=dtype))
        yield f"reduced-{kind}", randomized(cc.reduced_transformer(3, 8, dtype=dtype))


def randomized(model: cc.models.HookedTransformer) -> cc.models.HookedTransformer:
    """The model with random trained weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / 4)
    return model


def numbers(model: cc.models.HookedTransformer) -> dict[str, Tensor]:
    """Logits, mean loss and gradients on fixed sequences."""
    tokens = torch.randint(3, (64, model.cfg.n_ctx), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, -1], tokens[:, 0])
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), "loss": loss.detach(), **gradients}


def training() -> dict[str, Tensor]:
    """Weights and losses of a short training of every graph: in float32 by the compiled core, in float64 by torch."""
    found = {}
    for (name, graph), dtype in product(GRAPHS.items(), TOLERANCE):
        heads = max(degree for _, degree in graph.in_degree)
        task = cc.InContextTask(graph, d_vocab=3)
        model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads=(heads, 1), dtype=dtype)
        recipe = cc.TrainConfig.joint if heads == 1 else cc.TrainConfig.matched
        record = cc.train(model, task, recipe(40, batch_size=64))
        weights = {key: weight.detach() for key, weight in model.named_parameters() if weight.requires_grad}
        found |= {f"{name} {dtype} {key}": weight for key, weight in weights.items()}
        found[f"{name} {dtype} losses"] = record.losses
    return found


def write(folder: Path) -> None:
    """Leave models and what they compute."""
    for name, model in models():
        cc.save_model(model, folder / name)
        save_file({key: value.contiguous() for key, value in numbers(model).items()}, folder / f"{name}.safetensors")
    save_file({key: value.contiguous() for key, value in training().items()}, folder / "training.safetensors")


def read(folder: Path) -> None:
    """Load and compute again; an AssertionError names what differs."""
    for name, built in models():
        model = cc.load_model(folder / name)
        for (key, weight), (other, expected) in zip(model.named_parameters(), built.named_parameters(), strict=True):
            assert key == other, f"{name}: {key}"
            assert torch.equal(weight, expected), f"{name}: {key}"
        differences(name, numbers(model), load_file(folder / f"{name}.safetensors"), TOLERANCE[model.W_U.dtype])
    differences("training", training(), load_file(folder / "training.safetensors"), 1e-4)


def differences(name: str, found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Print the largest difference; more than the tolerance is an error."""
    assert found.keys() == expected.keys(), f"{name}: {found.keys() ^ expected.keys()}"
    worst = max(found, key=lambda key: float((found[key] - expected[key]).abs().max()))
    largest = float((found[worst] - expected[worst]).abs().max())
    assert largest <= tolerance, f"{name}: {worst} differs by {largest:.1e}, more than {tolerance:.0e}"
    print(f"{name}: {len(found)} tensors, largest difference {largest:.1e}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "read"):
        sys.exit("usage: check_versions.py write|read FOLDER")
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
