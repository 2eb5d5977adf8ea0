"""Experts with the norm behind them from their cubins: the bits of the two operators apart, run after run.

test_kernels.py compares them with PyTorch and puts bad rows beside good ones.
"""

from __future__ import annotations

import pytest
import torch
from onerec_trt.operators.kernels.moe_norm_cases import codes_only, moe_experts_norm_case, parts_of
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.launch import execute
from onerec_trt.tools.tuning.parity import this_capability
from torch import Tensor

from .repeats import captured, repeated, same_bits

RUNS = 300
SIZES = ((1408, 1408, 54, 4), (640, 384, 9, 3), (200, 128, 5, 2))  # D, H, experts, slots
ROWS = (1, 20, 100, 300, 1025, 4100, 16500)


def parts_apart(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """What the kernels of the parts give, one after the other."""
    experts, norm = (program_of(part, this_capability()) for part in parts_of(case))
    behind = len(experts.inputs)
    (total,) = execute(experts, inputs[:behind])
    return [total, *execute(norm, [total, *inputs[behind:]])]


@pytest.mark.parametrize("operator", EXPERTS_OF)
@pytest.mark.parametrize(("d", "h", "experts", "slots"), SIZES)
def test_the_bits_are_those_of_the_parts(operator: str, d: int, h: int, experts: int, slots: int) -> None:
    torch.manual_seed(1)
    for rows in ROWS:
        made = moe_experts_norm_case(operator, rows, d, h, experts, slots)
        for case in {each.read: each for each in (made, codes_only(made))}.values():
            inputs = case.tensors("cuda")
            actual = execute(program_of(case, this_capability()), inputs)
            assert same_bits(actual, parts_apart(case, inputs)), (rows, case.read)


@pytest.mark.parametrize("operator", EXPERTS_OF)
@pytest.mark.parametrize("rows", [130, 4100])
def test_same_input_same_bits_also_in_a_graph(operator: str, rows: int) -> None:
    torch.manual_seed(1)
    case = codes_only(moe_experts_norm_case(operator, rows, 1408, 1408))
    program, inputs = program_of(case, this_capability()), case.tensors("cuda")
    expected = execute(program, inputs)
    assert all(same_bits(outputs, expected) for outputs in repeated(program, inputs, RUNS))
    assert same_bits(captured(program, inputs), expected)
