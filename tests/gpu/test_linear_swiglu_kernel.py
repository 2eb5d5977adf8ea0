"""Gate and up with SwiGLU in one launch, in every way to cut it, against PyTorch; the same bits every time; a bad row stays alone."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.operators.kernels.linear_swiglu_cases import fp8_linear_swiglu_quant_tensor_case, linear_swiglu_case
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.launch import execute
from onerec_trt.operators.launch.program import Program
from onerec_trt.operators.launch.tiles import GemmTile, Tiles, committed_tiles
from onerec_trt.tools.tuning.parity import difference_of, this_capability

from .repeats import repeated, same_bits

CUTS = ((4, 8, 132), (2, 3, 7), (3, 16, 131))  # stages, row tiles of a walk, CTAs
RUNS = 100
by_make = pytest.mark.parametrize(
    "make",
    [
        linear_swiglu_case,
        fp8_linear_swiglu_quant_tensor_case,
        lambda rows, k, hidden: fp8_linear_swiglu_quant_tensor_case(rows, k, hidden, 128),
    ],
    ids=["FP16", "FP8", "FP8 promoted"],
)


def in_one_launch(case: Case, stages: int = 4, group: int = 8, ctas: int = 132) -> Program:
    tile = GemmTile(128, 256, 64 if case.operator == "LinearSwiGlu" else 128, stages, 12, group, ctas=ctas)
    others = (entry for entry in committed_tiles().entries if not entry.family.endswith("_swiglu"))
    program = program_of(case, this_capability(), Tiles((*others, *case.entries(this_capability(), tile))))
    assert {len(variant.launches) for variant in program.variants} == {1}
    return program


@by_make
@pytest.mark.parametrize(("stages", "group", "ctas"), CUTS)
def test_every_way_to_cut_it(make, stages, group, ctas):
    torch.manual_seed(3)
    for rows, k, hidden in ((1, 1408, 5632), (129, 256, 208), (3000, 1408, 1456), (16500, 1792, 7168)):
        case = make(rows, k, hidden)
        difference_of(case, in_one_launch(case, stages, group, ctas))  # raises above the threshold


@by_make
def test_same_input_same_bits(make):
    case = make(16500, 1408, 5632)
    program, inputs = in_one_launch(case), case.tensors("cuda")
    expected = execute(program, inputs)
    assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, RUNS))


@by_make
def test_a_bad_row_stays_alone(make):
    case, bad = make(300, 1408, 5632), 199
    program, inputs = in_one_launch(case), case.tensors("cuda")
    poisoned = [inputs[0].clone(), *inputs[1:]]
    poisoned[0].view(torch.uint8)[bad] = 0x7F  # NaN in E4M3; 0x7F7F is NaN in FP16
    others = torch.arange(300, device="cuda") != bad
    (clean,), (dirty,) = execute(program, inputs), execute(program, poisoned)
    assert same_bits([clean.view(torch.uint8)[others]], [dirty.view(torch.uint8)[others]])
    assert dirty.float()[bad].isnan().all()
