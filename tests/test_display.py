"""Results show themselves: in a terminal, in a notebook, with all text escaped."""

import dataclasses
import html
import inspect
import re
import typing
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_public_names import public

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.display import Result, table_html, table_text

BAD = "<script>alert('x')</script>&\""


def cells_of(fragment: str) -> list[list[str]]:
    """The text of a fragment's table cells, row by row."""
    rows = re.findall(r"<tr\b.*?>(.*?)</tr>", fragment, flags=re.DOTALL)
    cells = [re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<.*?>", "", cell)) for cell in row] for row in cells]


def record(losses: list[float], **fields: object) -> cc.TrainingRecord:
    given: dict[str, object] = {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "steps": (0, len(losses)),
        "recorded_losses": torch.tensor([2.25, 1.75], dtype=torch.float64),
        "attention": torch.zeros(2, 2, 1, 4, 4),
        "score_gradients": None,
    }
    return cc.TrainingRecord(**{**given, **fields})  # type: ignore[arg-type]


ROWS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans() | st.text("xy<&", max_size=5), min_size=1),
    min_size=1,
)


@given(ROWS)
def test_text_and_html_hold_the_same_cells(rows: list[dict[str, object]]) -> None:
    shown, text = cells_of(table_html(rows, "caption")), table_text(rows).split("\n")
    assert [line.split() for line in text] == [[cell for cell in cells if cell] for cells in shown]
    assert len(text) == len(rows) + 1


def test_a_record_tells_its_steps_its_losses_and_what_was_recorded() -> None:
    assert repr(record([2.25, 2.0, 1.75], path="fused", seconds=1.25)) == (
        "TrainingRecord(3 steps, loss 2.250 -> 1.750 nats, 1.2 s, fused path; "
        "2 states recorded; attention [2, 2, 1, 4, 4])"
    )
    shown = record([2.25, 2.0, 1.75])._repr_html_()
    assert cells_of(shown) == [["step", "loss"], ["0", "2.25"], ["3", "1.75"]]


def test_an_empty_record_shows_itself_too() -> None:
    empty = record([], steps=(), recorded_losses=torch.zeros(0, dtype=torch.float64), attention=None)
    assert repr(empty) == "TrainingRecord(0 steps, 0.0 s; 0 states recorded)"


def test_a_comparison_names_the_edges_that_differ_and_few_of_many() -> None:
    true, found = cc.chain_graph(20), cc.graph_from_parents([None] * 17 + [0, None])
    recovery = cc.compare_graphs(true, found)
    assert "exact=False, missing=((0, 1), ... 18 in all), false=((0, 17),)" in repr(recovery)
    assert ["false", "((0, 17),)"] in cells_of(recovery._repr_html_())


def test_a_recovered_graph_counts_edges_and_has_a_row_for_each_position() -> None:
    batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.3).sample(5000, seed=0)
    found, few = cc.recover_graph(batch), cc.recover_graph(batch[:40])
    assert repr(found) == "RecoveredGraph(4 edges, 0 undecided; 5,000 sequences)"
    assert repr(few) == "RecoveredGraph(0 edges, 4 undecided (1, 2, 3, 4); 40 sequences)"
    header, *rows = cells_of(found._repr_html_())
    frame = found.to_frame()
    assert header == list(frame.columns)
    assert [row[1] for row in rows] == frame.verdict.tolist() == ["root"] + ["child"] * 4
    assert frame.candidate.tolist()[1:] == [0, 1, 2, 3]
    assert few.to_frame().reason[1] in repr(few.positions[1])


def test_detected_heads_are_a_list_and_a_table() -> None:
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    heads = cc.detect_induction_heads(cc.plant_circuit(task.graph, d_vocab=3), task, n_sequences=64)
    assert [head.role for head in heads] == ["previous-token", "induction"]
    assert len(repr(heads).split("\n")) == 3
    header, first, second = cells_of(heads._repr_html_())
    assert (header[:2], first[:2], second[:2]) == (["head", "role"], ["L0H0", "previous-token"], ["L1H0", "induction"])
    assert float(first[3]) == pytest.approx(heads[0].parent_score, abs=6e-4)
    strange = cc.heads.HeadTable([dataclasses.replace(heads[0], role=BAD)])
    assert cells_of(strange._repr_html_())[1][1] == BAD
    assert "<script" not in strange._repr_html_()


def test_a_proof_shows_its_verdict_its_criteria_and_every_edge() -> None:
    task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
    model = circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0))
    proof = circuits.prove_circuit(model, [("position", "L0H0.q"), ("L1H0", "logits")], n_random=99, n_bootstrap=50)
    assert repr(proof).split("\n")[0] == proof.verdict
    shown = cells_of(proof._repr_html_())
    assert [row[0] for row in shown[1:5]] == [criterion.name for criterion in proof.criteria]
    assert [row[0] for row in shown[6:]] == ["position -> L0H0.q", "L1H0 -> logits"]


def large(kind: Any) -> Any:
    """A value of an annotated type, as large as they come."""
    if hasattr(kind, "array_type"):
        zeros = torch.zeros([30] * len(kind.dims))
        return zeros.numpy() if kind.array_type is np.ndarray else zeros
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(large(arg) for arg in args) if args[-1] is not ... else (large(args[0]),) * 500
    if origin is dict:
        return {f"{key}": large(args[1]) for key in range(50)}
    if args and not isinstance(args[0], list):  # the arguments of a function
        return args[0] if origin is Literal else large(args[0])
    made = {int: 10**6, float: 1 / 3, bool: False, str: "a word " * 500, torch.Tensor: torch.zeros(30, 30)}
    if kind in made or not dataclasses.is_dataclass(kind) or inspect.isabstract(kind):
        return made.get(kind)
    return filled(kind)


def filled(kind: Any) -> Any:
    one = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(one, field.name, large(field.type))
    return one


public()  # loads every module that has a result


@pytest.mark.parametrize("kind", Result.__subclasses__(), ids=lambda kind: kind.__name__)
def test_a_result_is_a_few_lines_however_large(kind: Any) -> None:
    one = filled(kind)
    assert len(repr(one)) <= 480, repr(one)
    assert "\n" not in repr(one)
    assert "object at 0x" not in repr(one)
    if kind._repr_html_ is Result._repr_html_ and not hasattr(kind, "to_frame"):
        rows = cells_of(one._repr_html_())
        assert [row[0] for row in rows[1:]] == [field.name for field in dataclasses.fields(kind) if field.repr]


def test_results_with_rows_show_them() -> None:
    batch = cc.InContextTask(cc.chain_graph(4), d_vocab=3).sample(64, seed=0)
    model = circuits.circuit_model(cc.plant_circuit(cc.chain_graph(4), d_vocab=3), batch)
    frontier, found = circuits.oracle_frontier(model), circuits.discover(model, "exact")
    for result in (frontier, found, circuits.rank(model, found, frontier)):
        frame = result.to_frame()
        assert cells_of(result._repr_html_())[0] == list(frame.columns)
        assert len(cells_of(result._repr_html_())) == len(frame) + 1
    assert frontier.to_frame().circuit[1] == " -> ".join(frontier.circuit(1)[0])
    assert found.to_frame().score.is_monotonic_decreasing
