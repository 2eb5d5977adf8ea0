"""LinearSwiGlu and Fp8LinearSwiGluQuantTensor: exactly the composition of product and SwiGLU, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.fp8 import E4M3
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays

PARTS = {"LinearSwiGlu": ("Linear", "SwiGlu"), "Fp8LinearSwiGluQuantTensor": ("Fp8Linear", "SwiGluQuantTensor")}
SIZES = [(1, 32, 8), (5, 48, 20), (37, 130, 36)]  # rows, K and H
NAMES = pytest.mark.parametrize("name", PARTS)


def inputs_of(name, half, rows, k, hidden):
    if name == "LinearSwiGlu":
        return [half(rows, k), half(2 * hidden, k) / 8], {}
    codes = [(half(size, k) * 100).clamp(-448, 448).to(E4M3) for size in (rows, 2 * hidden)]
    weight_scale = torch.rand(2 * hidden) * 1e-4 + 5e-5
    return [codes[0], torch.tensor([0.006]), codes[1], weight_scale, torch.tensor([0.004])], {"promotion": 128}


@NAMES
@pytest.mark.parametrize("size", SIZES)
def test_is_the_composition_of_its_parts(both, half, name, size):
    inputs, attributes = inputs_of(name, half, *size)
    outcome, (product, activation) = both(name, *inputs, **attributes), PARTS[name]
    scale = inputs[4:]
    operands = inputs[: len(inputs) - len(scale)]
    gate_up = OPERATORS[product].reference(*operands, **attributes)
    (expected,) = as_arrays(OPERATORS[activation].reference(*gate_up, *scale))
    assert np.array_equal(outcome.torch[0], expected)
    (in_onnx,) = both(product, *operands, **attributes).onnx
    (composed,) = both(activation, torch.from_numpy(in_onnx), *scale).onnx
    assert np.array_equal(outcome.onnx[0], composed)


@NAMES
def test_both_implementations_agree(hold, half, name):
    inputs, attributes = inputs_of(name, half, 20, 64, 40)
    (result,) = hold(name, *inputs, **attributes).torch
    assert result.shape == (20, 40)
    assert result.any()


@NAMES
def test_gate_rows_come_first(both, half, name):
    inputs, attributes = inputs_of(name, half, 3, 32, 8)
    weight = 1 if name == "LinearSwiGlu" else 2
    inputs[weight].view(torch.uint8)[:8] = 0  # a gate of 0 lets nothing through
    for (result,) in (both(name, *inputs, **attributes).torch, both(name, *inputs, **attributes).onnx):
        assert not result.any()


@NAMES
def test_a_bad_row_stays_alone(apart, half, name):
    inputs, attributes = inputs_of(name, half, 6, 32, 8)
    bad = inputs[0].clone()
    bad.view(torch.uint8)[4] = 0x7F  # NaN in E4M3; 0x7F7F is NaN in FP16
    apart(name, tuple(inputs), (bad, *inputs[1:]), 4, **attributes)
