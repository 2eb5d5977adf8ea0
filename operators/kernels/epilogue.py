"""The order in which matrix products walk their tiles, and the scales of a tile."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(number, rows, N: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr, GROUP: tl.constexpr):
    """First row and output channel of a tile: GROUP row tiles side by side, so that they share weights in the L2 cache."""
    row_tiles = tl.cdiv(rows, M_TILE)
    PER_GROUP: tl.constexpr = GROUP * ((N + N_TILE - 1) // N_TILE)
    first = number // PER_GROUP * GROUP
    size = min(row_tiles - first, GROUP)
    inside = number % PER_GROUP
    return (first + inside % size) * M_TILE, inside // size * N_TILE


@triton.jit
def scales_of(
    row, channel, scale, weight_scale_N, rows,
    N: tl.constexpr, ROW_SCALES: tl.constexpr, M_TILE: tl.constexpr, N_TILE: tl.constexpr,
):  # fmt: skip
    """Activation scale * weight scale of a tile: what operators/fp8_linear.py multiplies the product with."""
    channels = channel + tl.arange(0, N_TILE)
    weight_scale = tl.load(weight_scale_N + channels, mask=channels < N, other=0.0)[None, :]
    if ROW_SCALES:
        numbers = row + tl.arange(0, M_TILE)
        activation_scale = tl.load(scale + numbers, mask=numbers < rows, other=0.0)[:, None]
    else:
        activation_scale = tl.load(scale)
    return activation_scale * weight_scale
