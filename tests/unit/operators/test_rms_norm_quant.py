"""RmsNormQuant{Tensor,Row,Block}: codes, scales and the FP16 norm of both implementations; zeros, faults, saturation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.precision import AMAX_FLOOR, E4M3_MAX
from onerec_trt.operators import fp8
from onerec_trt.operators.rms_norm import norm_in_fp32, rms_norm

EPSILON = 1e-6
SCALE = torch.tensor([0.01])
FORMS = {"RmsNormQuantTensor": (SCALE,), "RmsNormQuantRow": (), "RmsNormQuantBlock": ()}
ZERO_SCALE = np.float32(AMAX_FLOOR) / np.float32(E4M3_MAX)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize("width", [96, 128, 161])
def test_ragged_sizes(hold, half, name, rows, width):
    outcome = hold(name, half(rows, width), torch.rand(width).half(), *FORMS[name], epsilon=EPSILON)
    assert outcome.torch[0].any()


@pytest.mark.parametrize("name", FORMS)
def test_norm_beside_the_codes_is_that_of_rmsnorm(hold, half, name):
    x, weight = half(7, 96), torch.rand(96).half()
    (norm,) = rms_norm(x, weight, epsilon=EPSILON)
    outcome = hold(name, x, weight, *FORMS[name], epsilon=EPSILON)
    assert np.array_equal(outcome.torch[-1], norm.numpy())


def test_codes_come_straight_from_fp32(hold, half):
    """Rounding the norm to FP16 first would change codes: numerics.md measured 0.4 % of them."""
    x, weight = half(64, 640), torch.rand(640).half()
    codes = hold("RmsNormQuantRow", x, weight, epsilon=EPSILON).torch[0]
    exact, _ = fp8.quantize_rows(norm_in_fp32(x, weight, EPSILON))
    through_half, _ = fp8.quantize_rows(norm_in_fp32(x, weight, EPSILON).half())
    assert np.array_equal(codes, exact.float().numpy())
    assert (codes != through_half.float().numpy()).any()


@pytest.mark.parametrize("name", ["RmsNormQuantRow", "RmsNormQuantBlock"])
def test_row_of_zeros_has_zero_codes_and_the_smallest_scale(hold, half, name):
    x = half(3, 161)
    x[1] = 0
    outcome = hold(name, x, torch.rand(161).half(), epsilon=EPSILON)
    for codes, scale, _norm in outcome:
        assert not codes[1].any()
        assert (scale[1] == ZERO_SCALE).all()


def test_block_form_pads_with_zero_codes(hold, half):
    codes, scale, norm = hold("RmsNormQuantBlock", half(3, 161), torch.rand(161).half(), epsilon=EPSILON).onnx
    assert (codes.shape, scale.shape, norm.shape) == ((3, 256), (3, 2), (3, 161))
    assert not codes[:, 161:].any()


def test_values_beyond_the_static_scale_saturate(hold, half):
    tiny = torch.tensor([1e-4])
    outcome = hold("RmsNormQuantTensor", half(4, 96), torch.ones(96).half(), tiny, epsilon=EPSILON)
    for codes, _norm in outcome:
        assert np.abs(codes).max() == E4M3_MAX
        assert np.isfinite(codes).all()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_fault_stays_in_its_row(apart, half, name, fault):
    x, weight = half(5, 161), torch.rand(161).half()
    bad = x.clone()
    bad[2, 7] = fault
    apart(name, (x, weight, *FORMS[name]), (bad, weight, *FORMS[name]), 2, epsilon=EPSILON)
