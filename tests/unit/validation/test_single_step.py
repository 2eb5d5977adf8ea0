"""One E4M3 step is forgiven in a small sample, and nothing else is: not two, not a larger one, not in a sample of a real size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.fp8 import E4M3
from onerec_trt.operators.kernels.moe_norm_cases import moe_experts_norm_case
from onerec_trt.operators.moe_experts_fp8 import moe_experts_fp8_row
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.operator import FP8_THRESHOLD, Call
from onerec_trt.operators.quant import quant_row
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from onerec_trt.validation.single_step import SMALL_SAMPLE, threshold_of, without_single_step

WIDTH = 32


def quantized(rows: int) -> Call:
    x_ND = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0)).half()
    return Call(quant_row, "x", (x_ND,), {}, quant_row(x_ND))


def judged(call: Call, *steps: tuple[int, int]) -> float:
    """The difference after codes at some places were moved by some steps."""
    bits = call.outputs[0].view(torch.uint8).clone()
    for place, step in steps:
        bits.view(-1)[place] += step
    actual, expected = as_arrays([bits.view(E4M3), call.outputs[1]]), as_arrays(call.outputs)
    return call.operator.compare(without_single_step(call, actual, expected), expected, as_arrays(call.inputs), {})


@pytest.mark.parametrize("step", [1, -1])
def test_one_step_in_a_small_sample_passes(step: int) -> None:
    call = quantized(4)
    largest = int(call.outputs[0].float().abs().argmin())  # a small code can move both ways
    assert judged(call, (largest, step)) <= threshold_of(call) == FP8_THRESHOLD


def test_the_step_would_fail_without() -> None:
    call = quantized(4)
    place = int((call.outputs[0].float().abs().flatten() - 100).abs().argmin())
    assert judged(call, (place, 1)) == 0
    assert judged(call, (place, 1), (place + 1, 1)) > FP8_THRESHOLD


def test_a_larger_step_fails() -> None:
    call = quantized(4)
    place = int((call.outputs[0].float().abs().flatten() - 100).abs().argmin())
    assert judged(call, (place, 2)) > FP8_THRESHOLD


def test_a_sample_of_a_real_size_is_judged_by_its_difference_alone() -> None:
    call = quantized(SMALL_SAMPLE // WIDTH + 1)
    assert judged(call, (5, 1)) > 0


def test_other_outputs_are_left_alone() -> None:
    call = quantized(4)
    expected = as_arrays(call.outputs)
    actual = [expected[0], expected[1] * 1.5]
    assert without_single_step(call, actual, expected)[1] is actual[1]
    wrong = [np.zeros((2, 2), np.float32), expected[1]]
    assert without_single_step(call, wrong, expected)[0] is wrong[0]


def test_codes_of_a_fused_norm_are_those_of_the_sum_at_hand() -> None:
    """One of them a step away is forgiven, wherever the sum lies."""
    case = moe_experts_norm_case("MoeExpertsFp8RowRmsNormQuantRow", 4, 64, 128, 3, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = tuple(case.tensors("cpu"))
    operator, pair = OPERATORS[case.operator], PAIRS[case.operator]
    call = Call(operator, "x", inputs, case.attributes, operator.reference(*inputs, **case.attributes))
    arrays, expected = as_arrays(inputs), as_arrays(call.outputs)
    moved = (expected[0] * np.float16(1.001) + np.float16(0.002)).astype(np.float16)
    actual = [moved, *pair.norm_of(moved, arrays[pair.inputs :], case.attributes)]
    assert (actual[1] != expected[1]).sum() > 1
    bits = torch.from_numpy(actual[1]).to(E4M3).view(torch.uint8).flatten()
    place = int(np.abs(np.abs(actual[1]) - 100).argmin())
    for steps, forgiven in ((1, True), (2, False)):
        wrong = bits.clone()
        wrong[place] += steps
        codes = wrong.view(E4M3).float().view(actual[1].shape).numpy()
        right = without_single_step(call, [moved, codes, *actual[2:]], expected)
        assert np.array_equal(right[1], actual[1]) is forgiven
        difference = operator.compare([moved, right[1], *actual[2:]], expected, arrays, case.attributes)
        assert (difference <= FP8_THRESHOLD) is forgiven


@pytest.mark.parametrize(("rows", "hidden", "expected"), [(2, 16, 9 / 128 / (2 * 2 * 16)), (16, 1408, FP8_THRESHOLD)])
def test_experts_are_judged_by_the_codes_inside_them(rows: int, hidden: int, expected: float) -> None:
    gate_up, index_NK = torch.empty(3 * 2 * hidden, 8), torch.zeros(rows, 2, dtype=torch.int64)
    rest = [torch.empty(0)] * 2
    for operator, behind in ((moe_experts_fp8_row, ()), (OPERATORS["MoeExpertsFp8RowRmsNormQuantRow"], (torch.empty(8),))):
        inputs = (*rest, gate_up, *rest, torch.empty(0), index_NK, *rest, *behind)
        assert threshold_of(Call(operator, "x", inputs, {"experts": 3, "promotion": 0}, ())) == pytest.approx(expected)
