"""RmsNorm: torch against ONNX over ragged sizes, rows of zeros, rows of NaN."""

from __future__ import annotations

import pytest
import torch

EPSILON = 1e-6


@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize("width", [32, 96, 161])
def test_ragged_sizes(hold, half, rows, width):
    norm = hold("RmsNorm", half(rows, width), torch.rand(width).half(), epsilon=EPSILON).torch[0]
    assert norm.any()


def test_rows_have_unit_mean_square(hold, half):
    (norm,) = hold("RmsNorm", half(5, 640) * 50, torch.ones(640).half(), epsilon=EPSILON).torch
    assert (norm.astype("float32") ** 2).mean(1) == pytest.approx([1.0] * 5, rel=1e-3)


def test_row_of_zeros_stays_zero(hold, half):
    x = half(3, 96)
    x[1] = 0
    outcome = hold("RmsNorm", x, torch.rand(96).half(), epsilon=EPSILON)
    assert not outcome.torch[0][1].any()
    assert not outcome.onnx[0][1].any()


def test_square_of_the_largest_fp16_value_does_not_overflow(hold):
    outcome = hold("RmsNorm", torch.full((2, 64), 65504.0).half(), torch.ones(64).half(), epsilon=EPSILON)
    assert outcome.onnx[0] == pytest.approx(1.0)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_fault_stays_in_its_row(apart, half, fault):
    x, weight = half(5, 96), torch.rand(96).half()
    bad = x.clone()
    bad[2, 7] = fault
    apart("RmsNorm", (x, weight), (bad, weight), 2, epsilon=EPSILON)
