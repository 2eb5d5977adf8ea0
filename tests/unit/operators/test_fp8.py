"""The reference casts: every FP16 value against ml_dtypes, scales of zeros, blocks and their padding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from onerec_trt.core.precision import AMAX_FLOOR, BLOCK, E4M3_MAX
from onerec_trt.operators import fp8
from torch.utils._python_dispatch import TorchDispatchMode

FINITE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
FINITE = FINITE[np.isfinite(FINITE)]


def by_ml_dtypes(values):
    return np.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("scale", [1.0, 0.01, 37.5])
def test_every_fp16_value_rounds_like_ml_dtypes(scale):
    codes = fp8.quantize_tensor(torch.from_numpy(FINITE), torch.tensor(scale))
    assert np.array_equal(codes.view(torch.uint8).numpy(), by_ml_dtypes(FINITE / np.float32(scale)).view(np.uint8))


def test_values_beyond_the_range_saturate_where_plain_casts_give_nan():
    beyond = torch.tensor([465.0, 1e30, torch.inf, -1e30, -torch.inf])
    assert fp8.to_e4m3(beyond).float().tolist() == [448, 448, 448, -448, -448]
    assert fp8.to_e4m3(torch.tensor(torch.nan)).float().isnan()


def test_rounds_straight_from_fp32():
    """17 + 2^-20 lies above the middle of 16 and 18; through FP16 it would be the middle and go down to even."""
    x = torch.tensor(17 + 2**-19)
    assert x.half() == 17
    assert fp8.to_e4m3(x).float() == 18
    assert fp8.to_e4m3(x.half().float()).float() == 16


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 5, 33)])
def test_rows(shape):
    x = torch.randn(shape)
    codes, scale = fp8.quantize_rows(x)
    assert scale.shape == (*shape[:-1], 1)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, x.abs().amax(-1, keepdim=True) / 448)
    assert (codes.float() * scale - x).abs().le(x.abs() / 16 + scale * 2**-10).all()


class Divisors(TorchDispatchMode):
    """What tensors are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div:
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


def test_a_scale_is_a_quotient_on_every_device():
    """By a number, a GPU would compute the product with its reciprocal: another scale for 55 % of the FP16 values that an amax may be."""
    amax = torch.from_numpy(FINITE[FINITE > 0])
    with Divisors() as divisors:
        scale = fp8.scale_of(amax)
    assert [type(divisor) for divisor in divisors.seen] == [torch.Tensor]
    product = amax * torch.tensor(1 / E4M3_MAX)
    assert np.array_equal(scale.numpy(), amax.numpy() / np.float32(E4M3_MAX))
    assert float((product != scale).float().mean()) == pytest.approx(0.55, abs=0.005)


def test_zeros_get_the_smallest_scale_and_no_nan():
    for codes, scale in (fp8.quantize_rows(torch.zeros(2, 130)), fp8.quantize_row_blocks(torch.zeros(2, 130))):
        assert not codes.float().any()
        assert (scale == torch.tensor(AMAX_FLOOR) / 448).all()
    assert (fp8.scale_of(fp8.weight_block_amax(torch.zeros(130, 4))) == torch.tensor(AMAX_FLOOR) / 448).all()


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_fault_stays_in_its_row_and_block(fault):
    x = torch.randn(3, 256)
    bad = x.clone()
    bad[1, 200] = fault
    for quantize, dequantize in ((fp8.quantize_rows, None), (fp8.quantize_row_blocks, fp8.dequantize_row_blocks)):
        good, after = (
            codes.float() * scale if dequantize is None else dequantize(codes, scale) for codes, scale in (quantize(x), quantize(bad))
        )
        assert torch.equal(good[[0, 2]], after[[0, 2]])
        if dequantize is not None:
            assert torch.equal(good[1, :BLOCK], after[1, :BLOCK])
        assert not after[1].isfinite().all()


@pytest.mark.parametrize("width", [1, 127, 128, 300])
def test_row_blocks(width):
    x = torch.randn(3, width)
    codes, scale = fp8.quantize_row_blocks(x)
    blocks = -(-width // BLOCK)
    assert codes.shape == (3, blocks * BLOCK)
    assert scale.shape == (3, blocks)
    values = fp8.dequantize_row_blocks(codes, scale)
    assert not values[:, width:].any()
    assert (values[:, :width] - x).abs().max() <= x.abs().max() / 16
    for block in range(blocks):
        part = x[:, block * BLOCK : (block + 1) * BLOCK]
        assert torch.equal(scale[:, block], part.abs().amax(1) / 448)


@pytest.mark.parametrize(("outputs", "inputs"), [(128, 128), (130, 300), (1, 1)])
def test_weight_blocks(outputs, inputs):
    weight = torch.randn(outputs, inputs)
    amax = fp8.weight_block_amax(weight)
    assert amax.shape == (-(-outputs // BLOCK), -(-inputs // BLOCK))
    for i in range(amax.shape[0]):
        for j in range(amax.shape[1]):
            assert amax[i, j] == weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK].abs().max()
    scale = fp8.scale_of(amax)
    codes = fp8.quantize_weight_blocks(weight, scale)
    expanded = fp8.expand_block_scale(scale, outputs)
    assert expanded.shape == (outputs, amax.shape[1])
    values = fp8.dequantize_row_blocks(codes, expanded)
    assert not values[:, inputs:].any()
    assert (values[:, :inputs] - weight).abs().max() <= weight.abs().max() / 16
