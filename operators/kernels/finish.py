"""The end of a product of few rows: what it needs is asked for before it is needed, then scales, residual, one rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scales_of_weights(weight_scale_N, channel, SCALED: tl.constexpr, N: tl.constexpr, N_TILE: tl.constexpr):
    """Those of a tile's output channels. They are constants of the plan: a kernel may ask for them before its wait."""
    scale = tl.full((N_TILE,), 1.0, tl.float32)
    if SCALED:
        channels = channel + tl.arange(0, N_TILE)
        scale = tl.load(weight_scale_N + channels, mask=channels < N, other=0.0)
    return scale


@triton.jit
def scales_and_residual(
    scale, residual_RN, row, channel, rows,
    SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr,
):  # fmt: skip
    """Activation scales [M_TILE] and residual [M_TILE, N_TILE] of a tile."""
    numbers = row + tl.arange(0, M_TILE)
    row_scale = tl.full((M_TILE,), 1.0, tl.float32)
    if SCALED:
        row_scale = tl.load(scale + numbers, mask=numbers < rows, other=0.0) if ROW_SCALES else row_scale * tl.load(scale)
    residual = tl.zeros((M_TILE, N_TILE), tl.float16)
    if RESIDUAL:
        place, inside = places_of(row, channel, rows, N, M_TILE, N_TILE)
        residual = tl.load(residual_RN + place, mask=inside, other=0.0)
    return row_scale, residual


@triton.jit
def finish(
    total, output_RN, row_scale, weight_scale, residual, row, channel, rows,
    SCALED: tl.constexpr, RESIDUAL: tl.constexpr, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr,
):  # fmt: skip
    """Scale a tile's sums, add its residual, and store it in the type of the output."""
    if SCALED:
        total *= row_scale[:, None] * weight_scale[None, :]
    if RESIDUAL:
        total += residual.to(tl.float32)
    place, inside = places_of(row, channel, rows, N, M_TILE, N_TILE)
    tl.store(output_RN + place, total.to(output_RN.dtype.element_ty), mask=inside)


@triton.jit
def places_of(row, channel, rows, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr):
    """Offsets [M_TILE, N_TILE] of a tile in [rows, N], 64 bits, and which of them exist."""
    numbers = (row + tl.arange(0, M_TILE)).to(tl.int64)
    channels = channel + tl.arange(0, N_TILE)
    return numbers[:, None] * N + channels[None, :], (numbers[:, None] < rows) & (channels[None, :] < N)
