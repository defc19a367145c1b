"""Models as files: the same model comes back, bit for bit, or the file is not written."""

from pathlib import Path

import pytest
import torch
from assertions import assert_refused, hooks_of
from torch import nn
from torch.nn.utils import parametrize

import causal_circuits as cc

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BUILDERS = {
    "disentangled": lambda dtype: cc.disentangled_transformer(3, 5, (2, 1), init_scale=0.3, seed=1, dtype=dtype),
    "reduced": lambda dtype: cc.reduced_transformer(3, 5, dtype=dtype),
    "planted": lambda dtype: cc.plant_circuit(cc.ngram_graph(5, order=2), d_vocab=3).to(dtype),
}


def bits(model: cc.models.HookedTransformer) -> dict[str, list[int]]:
    return {name: p.detach().flatten().view(torch.uint8).tolist() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_every_dtype_comes_back_bit_for_bit(build, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(dtype)
    with torch.no_grad():
        model.unembed.W_U.normal_(generator=torch.Generator().manual_seed(0))  # values that the dtype has to round
        model.unembed.W_U[0, 0] = torch.nan
    again = cc.load_model(cc.save_model(model, tmp_path))
    assert bits(again) == bits(model)
    assert again.cfg.dtype == dtype
    assert cc.models.layout_of(again) == cc.models.layout_of(model)
    assert hooks_of(again) == hooks_of(model)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    tokens = torch.tensor([[0, 1, 2, 1, 0]])
    torch.testing.assert_close(again(tokens), model(tokens), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_frozen_weight_that_was_edited_is_named(build, tmp_path: Path) -> None:
    """Each in turn, one random entry of it; the trained weights are saved whatever they are."""
    model, generator = build(torch.float32), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[torch.randint(parameter.numel(), (), generator=generator)] += 0.25
        if name.endswith(("W_Q", "W_U")):
            assert bits(cc.load_model(cc.save_model(model, tmp_path / name))) == bits(model)
        else:
            assert_refused(lambda: cc.save_model(model, tmp_path / "refused"), "edited weight", name, "undo it")
        parameter.data.copy_(before)
    assert not (tmp_path / "refused").exists()
    cc.save_model(model, tmp_path)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_what_a_file_cannot_hold_is_refused_or_warned_of(tmp_path: Path) -> None:
    def planted() -> cc.models.HookedTransformer:
        return cc.plant_circuit(cc.chain_graph(5), d_vocab=3)

    model = planted()
    parametrize.register_parametrization(model.blocks[0].attn, "W_Q", Doubled())
    assert_refused(lambda: cc.save_model(model, tmp_path), "parametrization", "blocks.0.attn.W_Q")
    model = planted()
    model.blocks[1].attn.attn_scale = 2.0
    assert_refused(lambda: cc.save_model(model, tmp_path), "blocks.1.attn.attn_scale")
    model = planted()
    model.unembed.W_U.data = model.unembed.W_U.data.double()
    assert_refused(lambda: cc.save_model(model, tmp_path), "one dtype", "float32 and float64", "model.float()")
    model = planted().to(torch.float8_e4m3fn)
    assert_refused(lambda: cc.save_model(model, tmp_path), "one dtype", "float8_e4m3fn")
    assert list(tmp_path.iterdir()) == []
    model = planted()
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    with pytest.warns(UserWarning, match=r"hooks are not saved .* blocks\.0\.attn\.hook_z"):
        cc.save_model(model, tmp_path)
    assert bits(cc.load_model(tmp_path)) == bits(planted())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.uint8, torch.bool], ids=str)
def test_a_digest_depends_on_every_bit_and_on_the_dtype(dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 0, 1]).to(dtype)
    other = values.clone()
    other[3] = 0
    digests = [cc.storage.digest({"a": array}) for array in (values, other, values.view(2, 2), values.view(torch.int8))]
    assert len(set(digests)) == 4
    assert cc.storage.digest({"a": torch.stack([values, other], dim=1)[:, 0]}) == digests[0]
    if dtype is not torch.bfloat16:  # numpy has none
        assert cc.storage.digest({"a": values.numpy()}) == digests[0]
