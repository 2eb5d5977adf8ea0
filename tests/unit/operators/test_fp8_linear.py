"""Fp8Linear and Fp8LinearAdd: products of codes with scales in the epilogue; range and precision of the ONNX form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8

SIZES = [(1, 96, 33), (2, 17, 160), (37, 130, 1), (130, 64, 48)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("promotion", [0, 128])
def test_ragged_sizes(hold, half, weight_codes, rows, inputs, outputs, promotion):
    codes, scale = fp8.quantize_rows(torch.randn(rows, inputs))
    weight = weight_codes(outputs, inputs)
    for activation_scale in (scale, torch.tensor([0.01])):
        hold("Fp8Linear", codes, activation_scale, *weight, promotion=promotion)
        hold("Fp8LinearAdd", codes, activation_scale, *weight, half(rows, outputs), promotion=promotion)


def test_is_close_to_the_exact_product(hold):
    x, w = torch.randn(37, 640), torch.randn(48, 640) * 640**-0.5
    codes, scale = fp8.quantize_rows(x)
    weight_codes, weight_scale = fp8.quantize_rows(w)
    (product,) = hold("Fp8Linear", codes, scale, weight_codes, weight_scale[:, 0], promotion=0).onnx
    exact = (x @ w.T).numpy()
    error = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    assert 0.01 < error < 0.05, f"E4M3 rows and channels lose about 0.037, not {error:.3f}"


def test_full_scale_rows_do_not_overflow_inside(hold):
    """5000 channels of 448 x 448 in perfect correlation: the worst an FP16 product of codes has to hold."""
    codes = torch.full((2, 5000), 448.0).to(fp8.E4M3)
    weight_codes = torch.full((3, 5000), 448.0).to(fp8.E4M3)
    scale, weight_scale = torch.full((2, 1), 1 / 448), torch.full((3,), 1 / 448)
    for (product,) in hold("Fp8Linear", codes, scale, weight_codes, weight_scale, promotion=0):
        assert product == pytest.approx(5000, rel=1e-3)


def test_scales_too_small_for_fp16_keep_their_precision(hold, weight_codes):
    """Weight scales below 6.1e-5 would be subnormal in FP16; they stay in FP32."""
    codes, scale = fp8.quantize_rows(torch.randn(9, 96))
    weight, weight_scale = weight_codes(16, 96)
    (product,) = hold("Fp8Linear", codes, scale * 1e4, weight, weight_scale * 1e-4, promotion=0).onnx
    (plain,) = hold("Fp8Linear", codes, scale, weight, weight_scale, promotion=0).onnx
    assert weight_scale.max() * 1e-4 < 6e-5
    assert product == pytest.approx(plain, rel=2e-3, abs=1e-4)


def test_row_of_zeros(hold, weight_codes):
    x = torch.randn(3, 96)
    x[1] = 0
    for (product,) in hold("Fp8Linear", *fp8.quantize_rows(x), *weight_codes(16, 96), promotion=0):
        assert not product[1].any()


def test_fault_stays_in_its_row(apart, half, weight_codes):
    x, weight, residual = torch.randn(5, 96), weight_codes(33, 96), half(5, 33)
    bad = x.clone()
    bad[2, 7] = float("nan")
    good_x, bad_x = fp8.quantize_rows(x), fp8.quantize_rows(bad)
    apart("Fp8Linear", (*good_x, *weight), (*bad_x, *weight), 2, promotion=0)
    apart("Fp8LinearAdd", (*good_x, *weight, residual), (*bad_x, *weight, residual), 2, promotion=0)
