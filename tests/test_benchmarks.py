"""What the benchmarks compare is the same work: gradients of every baseline, effects of every cut, rates in turn."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import causal_circuits as cc

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (2, 2)])
def test_every_baseline_takes_the_step_that_transformer_lens_takes(heads, monkeypatch) -> None:
    throughput = benchmark("throughput", monkeypatch)
    model = cc.disentangled_transformer(4, 7, heads, init_scale=0.5)
    batch = cc.InContextTask(cc.chain_graph(7), d_vocab=4).sample(64, seed=0)
    gradients = {}
    for name, step in throughput.steps_by_autograd(model, batch).items():
        step()
        gradients[name] = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    assert tuple(gradients) == throughput.BASELINES
    for found in gradients.values():
        for ours, plain in zip(found, gradients["plain TransformerLens"], strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)
    assert all(float(g.abs().max()) > 1e-4 for g in gradients["plain TransformerLens"])


def test_another_program_says_its_rate_in_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = benchmark("throughput", monkeypatch)
    say = f"{sys.executable} -c \"print('compiled'); print({{}})\""
    assert throughput.other_program(say.format("1234.5")) == 1234.5
    for bad in ("'fast'", "-1", "float('nan')", "float('inf')", "1 / 0"):
        with pytest.raises(SystemExit, match="sequences a second"):
            throughput.other_program(say.format(bad))


def test_rates_are_taken_in_turn_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = benchmark("measuring", monkeypatch)
    order: list[str] = []

    def rate(name: str, value: float) -> float:
        order.append(name)
        return value

    rates = {"a": lambda: rate("a", 100.0 + len(order)), "b": lambda: rate("b", 1.0)}
    found = measuring.rates_in_turn({}, rates, 3)
    assert order == ["a", "b"] * 4
    assert found == {"a": [102.0, 104.0, 106.0], "b": [1.0, 1.0, 1.0]}


def test_both_knock_outs_cut_the_same_entries_to_the_same_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    knock_out = benchmark("knock_out", monkeypatch)
    model = cc.disentangled_transformer(3, 5, (2, 1), init_scale=0.7)
    batch = cc.InContextTask(cc.chain_graph(5), d_vocab=3).sample(64, seed=0)
    entries = knock_out.causal_entries((2, 1), 5)
    assert len(entries) == len(set(entries)) == 3 * 15
    with torch.no_grad():
        ours, theirs = (cut(model, batch, entries)[1] for cut in (knock_out.ours, knock_out.theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    matters = torch.tensor([layer == 0 or query == 4 for layer, _, query, _ in entries])
    assert float(ours[~matters].abs().max()) < 1e-6
    assert float(ours[matters].abs().max()) > 1e-3


def test_every_stage_can_be_left_out_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    roofline = benchmark("roofline", monkeypatch)
    sources = {roofline.step_without(stage) for stage in roofline.STAGES}
    assert len(sources) == len(roofline.STAGES)
