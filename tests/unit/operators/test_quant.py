"""Quant{Tensor,Row}: E4M3 codes of FP16 tensors; all FP16 values, zeros, saturation, faults."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from onerec_trt.core.precision import AMAX_FLOOR, E4M3_MAX

ZERO_SCALE = np.float32(AMAX_FLOOR) / np.float32(E4M3_MAX)


@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize("width", [32, 161])
def test_ragged_sizes(hold, half, rows, width):
    x = half(rows, width)
    hold("QuantTensor", x, torch.tensor([0.01]))
    codes, scale = hold("QuantRow", x).torch
    assert np.abs(codes).max(1) == pytest.approx(E4M3_MAX), "every row reaches the end of the range"
    assert codes * scale == pytest.approx(x.numpy(), abs=float(x.abs().max()) / 16)


def test_every_fp16_value_becomes_the_code_of_ml_dtypes(hold):
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    outcome = hold("QuantTensor", torch.from_numpy(values)[None], torch.tensor([1.0]))
    expected = np.clip(values.astype(np.float32), -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(outcome.torch[0][0], expected)
    assert np.array_equal(outcome.onnx[0][0], expected)


def test_row_of_zeros(hold, half):
    x = half(3, 33)
    x[1] = 0
    for codes, scale in hold("QuantRow", x):
        assert not codes[1].any()
        assert scale[1] == ZERO_SCALE


@pytest.mark.parametrize(("name", "scale"), [("QuantTensor", (torch.tensor([0.01]),)), ("QuantRow", ())])
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_fault_stays_in_its_row(apart, both, half, name, scale, fault):
    x = half(5, 33)
    bad = x.clone()
    bad[2, 7] = fault
    if name == "QuantTensor" and fault == float("inf"):  # one scale for all: infinity saturates and no other value changes
        for (codes,) in both(name, bad, *scale):
            assert codes[2, 7] == E4M3_MAX
        return
    apart(name, (x, *scale), (bad, *scale), 2)
