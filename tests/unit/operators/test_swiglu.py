"""SwiGlu and SwiGluQuant{Tensor,Row}: gate and up side by side, FP32 until rounded or quantized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.precision import AMAX_FLOOR, E4M3_MAX
from onerec_trt.operators import fp8
from onerec_trt.operators.swiglu import swiglu_in_fp32

SCALE = torch.tensor([0.01])
FORMS = {"SwiGlu": (), "SwiGluQuantTensor": (SCALE,), "SwiGluQuantRow": ()}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize("hidden", [16, 161])
def test_ragged_sizes(hold, half, name, rows, hidden):
    outcome = hold(name, half(rows, 2 * hidden), *FORMS[name])
    assert outcome.torch[0].shape == (rows, hidden)


def test_the_first_half_is_the_gate(hold):
    gate_up = torch.tensor([[20.0, -20.0, 3.0, 5.0]]).half()
    for (hidden,) in hold("SwiGlu", gate_up):
        assert hidden[0] == pytest.approx([60.0, 0.0], abs=1e-3)


def test_codes_come_straight_from_fp32(hold, half):
    gate_up = half(64, 1280)
    codes, _ = hold("SwiGluQuantRow", gate_up).torch
    through_half, _ = fp8.quantize_rows(swiglu_in_fp32(gate_up).half())
    assert (codes != through_half.float().numpy()).any()


def test_product_beyond_fp16_is_still_quantized(hold):
    """400 * 400 is no FP16 number, but the FP32 product can be quantized."""
    for codes, scale in hold("SwiGluQuantRow", torch.full((1, 4), 400.0).half()):
        assert codes * scale == pytest.approx(160000, rel=1e-3)


def test_row_of_zeros(hold, half):
    gate_up = half(3, 66)
    gate_up[1] = 0
    for codes, scale in hold("SwiGluQuantRow", gate_up):
        assert not codes[1].any()
        assert scale[1] == np.float32(AMAX_FLOOR) / np.float32(E4M3_MAX)


@pytest.mark.parametrize("name", FORMS)
def test_fault_stays_in_its_row(apart, half, name):
    gate_up = half(5, 66)
    bad = gate_up.clone()
    bad[2, 7] = float("nan")
    apart(name, (gate_up, *FORMS[name]), (bad, *FORMS[name]), 2)
