"""A case says what its node, its tensors and its place in the table are; every kernel declares cases that fit it."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.operators.kernels.fp8_linear import fp8_linear_add_case, fp8_linear_case
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.kernels.rms_norm_quant import rms_norm_quant_row_case
from onerec_trt.operators.launch.case import Case, codes, compiled_reference, half, indices, scales
from onerec_trt.operators.launch.program import InputType
from onerec_trt.operators.launch.tiles import GemmTile, Tiles, committed_tiles
from onerec_trt.operators.registry import OPERATORS


def test_an_example_has_the_values_and_the_type_it_promises() -> None:
    example = codes(3, 64, 16, dynamic=(0, 1))
    assert example.type == InputType("float8_e4m3fn", (None, None, 16))
    values = example.tensor("cpu")
    assert (values.dtype, tuple(values.shape)) == (torch.float8_e4m3fn, (3, 64, 16))
    assert values.float().abs().max() > 100
    assert 0.001 <= scales(100).tensor("cpu").min() <= scales(100).tensor("cpu").max() <= 0.011
    assert indices(50, below=3).tensor("cpu").unique().tolist() == [0, 1, 2]


def test_a_case_is_a_node_with_its_dynamic_axes_open() -> None:
    node = fp8_linear_add_case(7, 64, 32, 128).node("9.0")
    assert node.operator == "Fp8LinearAdd"
    assert [each.shape for each in node.inputs] == [(None, 64), (None, 1), (32, 64), (32,), (None, 32)]
    assert node.attributes == {"promotion": 128}


def test_entries_give_a_case_its_tile() -> None:
    case, tile = fp8_linear_case(7, 64, 32), GemmTile(16, 32, 64, 2, 4)
    tiles = Tiles(tuple(case.entries("9.0", tile, ("fp8_linear", "fp8_linear_add"))))
    assert {(e.family, e.rows, e.shape) for e in tiles.entries} == {("fp8_linear", 7, (64, 32)), ("fp8_linear_add", 7, (64, 32))}
    assert tiles.tile("9.0", "fp8_linear", (64, 32), 7) == tile


def test_an_accumulator_that_is_never_promoted_may_lose_more() -> None:
    own = OPERATORS["Fp8Linear"].threshold
    assert fp8_linear_case(1, 14080, 8, 128).threshold == own
    assert fp8_linear_case(1, 14080, 8).threshold > own


def test_the_compiled_reference_leaves_out_what_nobody_reads(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = rms_norm_quant_row_case(4, 8)
    for read, outputs in (((), 3), ((True, True, True), 3), ((True, True, False), 2)):
        library = compiled_reference(Case(case.operator, case.inputs, case.size, case.attributes, read))
        assert len(library.prepare(case.tensors("cpu"))()) == outputs


@pytest.mark.parametrize("operator", FACTORIES)
def test_declared_cases_are_of_their_operator_and_stand_in_the_table(operator: str) -> None:
    declared = FACTORIES[operator].cases
    cases = [trial.case for trial in declared.ragged()]
    assert cases, "the interpreter runs every kernel"
    cases += [*declared.of_model(3, 64), *declared.odd(3), *(each.case for each in declared.measured())]
    tuned = list(declared.tuned())
    for case in (*cases, *(tuning.case for tuning in tuned)):
        assert case.operator == operator
        if case.tile is not None:
            assert committed_tiles().tile("9.0", case.tile.family, case.tile.shape, case.tile.rows)
    for tuning in tuned:
        assert tuning.case.tile is not None
        assert tuning.case.tile.family in tuning.families
        assert list(declared.candidates(tuning.case, "9.0"))


def test_a_row_case_has_as_many_rows_as_its_first_input() -> None:
    case = Case("QuantRow", (half(5, 8),), (5, 8))
    assert (case.rows, case.label) == (5, "5x8")
