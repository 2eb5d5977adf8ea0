"""Codes are compared as the values they stand for, and their scales too, or with the values that were rounded to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.comparison import compare_codes, difference_explaining
from onerec_trt.operators.operator import FP8_THRESHOLD, FP16_THRESHOLD
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


def rounded(values):
    return fp8.to_e4m3(values.float()).float().numpy()


@pytest.mark.parametrize("size", [1e-3, 0.1, 8, 300])
def test_codes_of_the_very_values_explain_them_at_any_size(size):
    values = torch.cat([torch.randn(5000) * size, torch.tensor([0.0, -0.0, 448.0, -449.0, 2e4, 2.0**-10, -(2.0**-10)])])
    assert difference_explaining(rounded(values), values.numpy()) == 0


def test_codes_of_values_within_a_difference_are_within_it_however_few_flip():
    """Of 1408 codes ten or so flip here: by themselves they differ by far more."""
    for seed in range(200):
        torch.manual_seed(seed)
        values = torch.randn(1408) * 9
        moved = values * (1 + 7e-4 * torch.randn(1408))
        assert difference_explaining(rounded(moved), values.numpy()) <= FP16_THRESHOLD


def test_codes_that_are_rounded_wrongly_are_not_explained():
    values = torch.randn(1408) * 9
    codes = rounded(values)
    cut_off = np.where(np.abs(codes) > np.abs(values.numpy()), codes * 0.9375, codes)  # toward zero, near enough
    one_off = codes.copy()
    one_off[np.abs(values).argmax()] *= 1.125
    for wrong in (rounded(torch.from_numpy(cut_off)), one_off, -codes, np.roll(codes, 1), rounded(values * 1.01)):
        assert difference_explaining(wrong, values.numpy()) > FP16_THRESHOLD


def test_nan_must_stand_where_it_stands_in_the_values():
    values = torch.randn(64)
    values[5] = torch.nan
    codes = rounded(values)
    assert difference_explaining(codes, values.numpy()) == 0
    assert difference_explaining(np.nan_to_num(codes), values.numpy()) == float("inf")
    assert difference_explaining(np.roll(codes, 1), values.numpy()) == float("inf")
    assert difference_explaining(codes[:32], values.numpy()) == float("inf")
