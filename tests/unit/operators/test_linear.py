"""Linear and LinearAdd: FP16 products with FP32 accumulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SIZES = [(1, 96, 33), (2, 17, 160), (37, 130, 1), (130, 64, 48)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_ragged_sizes(hold, half, rows, inputs, outputs):
    x, weight = half(rows, inputs), half(outputs, inputs) * inputs**-0.5
    (product,) = hold("Linear", x, weight).torch
    (added,) = hold("LinearAdd", x, weight, half(rows, outputs)).torch
    assert product.any()
    assert (product != added).any()


def test_accumulates_beyond_fp16_precision(hold):
    """4096 ones and a half: FP16 accumulation would stop counting at 2048."""
    x = torch.ones(1, 4096).half()
    (product,) = hold("Linear", x, torch.ones(1, 4096).half()).torch
    assert product == 4096


def test_residual_is_added_before_rounding(hold):
    """2049 is no FP16 number: rounded first, 2049 + 1 becomes 2048 + 1, and 2048.

    The ONNX function does round first: TensorRT takes only a product that leaves in FP16 for an FP16 one.
    """
    x = torch.tensor([[2048.0, 1.0]]).half()
    both = hold("LinearAdd", x, torch.ones(1, 2).half(), torch.ones(1, 1).half())
    assert both.torch[0] == 2050
    assert both.onnx[0] == 2048


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_fault_stays_in_its_row(apart, half, fault):
    x, weight, residual = half(5, 96), half(33, 96), half(5, 33)
    bad = x.clone()
    bad[2, 7] = fault
    apart("Linear", (x, weight), (bad, weight), 2)
    apart("LinearAdd", (x, weight, residual), (bad, weight, residual), 2)


def test_overflow_becomes_infinity_in_both(both):
    x = torch.full((1, 64), 100.0).half()
    for (product,) in both("Linear", x, torch.full((1, 64), 100.0).half()):
        assert np.isposinf(product).all()
