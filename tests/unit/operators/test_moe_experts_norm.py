"""Experts with the norm behind them: the composition of both, in PyTorch and in ONNX Runtime, and a comparison by the sum at hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onerec_trt.operators.kernels.moe_norm_cases import moe_experts_norm_case
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.operator import Array, Attributes
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from torch import Tensor

NAMES = [
    "MoeExpertsRmsNorm",
    "MoeExpertsFp8TensorRmsNormQuantTensor",
    "MoeExpertsFp8RowRmsNormQuantRow",
    "MoeExpertsFp8RowBlockRmsNormQuantRow",
    "MoeExpertsFp8BlockRmsNormQuantRow",
]
SIZES = [(1, 32, 128, 1, 1, 0), (2, 96, 256, 5, 2, 1), (37, 161, 128, 4, 4, 1), (130, 64, 128, 6, 3, 0)]  # as of `moe_experts_case`


def node_of(name: str, *size: int) -> tuple[list[Tensor], Attributes]:
    case = moe_experts_norm_case(name, *size)
    return case.tensors("cpu"), case.attributes


def attributes_of(name: str, attributes: Attributes) -> tuple[Attributes, Attributes]:
    """Those of the experts, and those of the norm."""
    epsilon = {"epsilon": attributes["epsilon"]}
    return {key: value for key, value in attributes.items() if key not in epsilon}, epsilon


def test_every_pair_is_here() -> None:
    assert list(PAIRS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_is_the_composition_of_its_parts(both: Callable, name: str, size: tuple[int, ...]) -> None:
    """To the bit, in both implementations."""
    pair, (inputs, attributes) = PAIRS[name], node_of(name, *size)
    of_experts, of_norm = attributes_of(name, attributes)
    before, behind = inputs[: pair.inputs], inputs[pair.inputs :]
    outcome = both(name, *inputs, **attributes)
    (total,) = pair.experts.reference(*before, **of_experts)
    for actual, meant in zip(outcome.torch, as_arrays([total, *pair.norm.reference(total, *behind, **of_norm)]), strict=True):
        assert np.array_equal(actual, meant)
    (onnx_total,) = both(pair.experts.name, *before, **of_experts).onnx
    composed = both(pair.norm.name, torch.from_numpy(onnx_total), *behind, **of_norm).onnx
    for actual, meant in zip(outcome.onnx, [onnx_total, *composed], strict=True):
        assert np.array_equal(actual, meant)


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_agree(hold: Callable, name: str) -> None:
    inputs, attributes = node_of(name, 37, 161, 128, 4, 3)
    total, *normed = hold(name, *inputs, **attributes).torch
    assert total.any()
    assert all(each.any() for each in normed)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_output_is_the_norm_in_fp16(both: Callable, name: str) -> None:
    inputs, attributes = node_of(name, 5, 64, 128, 3, 2)
    total, *_, norm = both(name, *inputs, **attributes).torch
    wide, weight = total.astype(np.float32), inputs[PAIRS[name].inputs].float().numpy()
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + attributes["epsilon"]) * weight
    assert norm == pytest.approx(exact, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_fault_stays_in_its_row(apart: Callable, name: str) -> None:
    inputs, attributes = node_of(name, 6, 64, 128, 4, 2)
    bad = inputs[0].clone()
    bad.view(torch.uint8)[2] = 0x7F  # NaN in E4M3; two of them are NaN in FP16
    apart(name, tuple(inputs), (bad, *inputs[1:]), 2, **attributes)


def outputs_of(name: str) -> tuple[list[Array], list[Array], Attributes]:
    """Inputs and the reference's outputs, of 300 rows of 64 channels."""
    inputs, attributes = node_of(name, 300, 64, 128, 3, 2)
    return as_arrays(inputs), as_arrays(OPERATORS[name].reference(*inputs, **attributes)), attributes


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_is_judged_beside_its_own_sum(name: str) -> None:
    """A sum within the experts' threshold moves codes by whole steps: beside the reference's codes they would be too many."""
    operator, pair = OPERATORS[name], PAIRS[name]
    inputs, expected, attributes = outputs_of(name)
    share = (operator.threshold / 2) ** 0.5
    draw = np.random.default_rng(0)
    moved = (expected[0] * (1 + share * draw.standard_normal(expected[0].shape))).astype(np.float16)
    actual = [moved, *pair.norm_of(moved, inputs[pair.inputs :], attributes)]
    assert 0 < operator.compare(actual, expected, inputs, attributes) <= operator.threshold
    if "Quant" in name:
        assert pair.norm.compare(actual[1:], expected[1:], [], {}) > operator.threshold


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_part_is_seen(name: str) -> None:
    operator = OPERATORS[name]
    inputs, expected, attributes = outputs_of(name)
    assert operator.compare(expected, expected, inputs, attributes) == 0
    for number in range(len(expected)):
        wrong = list(expected)
        wrong[number] = wrong[number] * wrong[number].dtype.type(1.25)
        assert operator.compare(wrong, expected, inputs, attributes) > operator.threshold, number
    assert operator.compare([expected[0][:-1], *expected[1:]], expected, inputs, attributes) == float("inf")
