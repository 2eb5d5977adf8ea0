"""Codes are compared as the values they stand for, and their scales too."""

from __future__ import annotations

import numpy as np
import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.comparison import compare_codes
from onerec_trt.operators.operator import FP8_THRESHOLD
from onerec_trt.operators.single_node import as_arrays


def quantized(x):
    return as_arrays(fp8.quantize_row_blocks(x))


def compare(actual, expected):
    return compare_codes(actual, expected, [], {})


def test_the_same_codes():
    x = quantized(torch.randn(7, 300))
    assert compare(x, x) == 0


def test_one_flipped_code_in_ten_thousand_passes_and_one_in_a_hundred_does_not():
    codes, scale = quantized(torch.randn(80, 128))
    for share, passes in ((10_000, True), (100, False)):
        other = codes.copy().ravel()
        other[::share] *= 1.125
        assert (compare([other.reshape(codes.shape), scale], [codes, scale]) <= FP8_THRESHOLD) is passes


def test_wrong_scale_of_right_codes():
    codes, scale = quantized(torch.randn(7, 128))
    assert compare([codes, scale * 1.01], [codes, scale]) > FP8_THRESHOLD


def test_nan_at_another_place():
    codes, scale = quantized(torch.randn(7, 128))
    bad = codes.copy()
    bad[3, 3] = np.nan
    assert compare([bad, scale], [codes, scale]) == float("inf")
    assert compare([bad, scale], [bad, scale]) == 0


def test_other_outputs_count_too():
    codes, scale = quantized(torch.randn(7, 128))
    norm = np.ones(3)
    assert compare([codes, scale, norm * 2], [codes, scale, norm]) > 0.1
