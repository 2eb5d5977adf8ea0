"""The matrix product with ordinary loads, one CTA per tile: for few rows, for odd strides, and for GPUs without descriptors."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous, prefetch
from .epilogue import scales_of, tile_of


@triton.jit
def gemm(
    x_RK, weight_NK, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: tl.constexpr, K: tl.constexpr,
    SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr, GROUP: tl.constexpr,
    DEPENDENT: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    row, channel = tile_of(tl.program_id(0), rows, N, M_TILE, N_TILE, GROUP)
    if DEPENDENT:
        if (row == 0) & (channel + N_TILE <= N):
            BYTES: tl.constexpr = N_TILE * K * (weight_NK.dtype.element_ty.primitive_bitwidth // 8)
            prefetch(weight_NK + channel.to(tl.int64) * K, tl.arange(0, THREADS), BYTES, THREADS)
        await_previous()
    numbers = (row + tl.arange(0, M_TILE)).to(tl.int64)
    channels = channel + tl.arange(0, N_TILE)
    steps = tl.arange(0, K_TILE)
    # Rows and channels beyond the edge read the last one instead: no mask in the loop, and they are not stored.
    x = x_RK + tl.minimum(numbers, rows - 1)[:, None] * K + steps[None, :]
    weight = weight_NK + tl.minimum(channels, N - 1).to(tl.int64)[None, :] * K + steps[:, None]
    accumulator = tl.zeros((M_TILE, N_TILE), tl.float32)
    for start in range(0, K, K_TILE):
        if K % K_TILE == 0:
            x_tile, weight_tile = tl.load(x), tl.load(weight)
        else:
            x_tile = tl.load(x, mask=steps[None, :] < K - start, other=0.0)
            weight_tile = tl.load(weight, mask=steps[:, None] < K - start, other=0.0)
        if PROMOTE:
            # Without the last argument Triton moves the sum into the tensor core on all GPUs but Hopper's: nothing is promoted then.
            accumulator += tl.dot(x_tile, weight_tile, max_num_imprecise_acc=K_TILE)
        else:
            accumulator = tl.dot(x_tile, weight_tile, accumulator)
        x += K_TILE
        weight += K_TILE
    if SCALED:
        accumulator *= scales_of(row, channel, scale, weight_scale_N, rows, N, ROW_SCALES, M_TILE, N_TILE)
    inside = (numbers[:, None] < rows) & (channels[None, :] < N)
    place = numbers[:, None] * N + channels[None, :]
    if RESIDUAL:
        accumulator += tl.load(residual_RN + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(output_RN + place, accumulator.to(tl.float16), mask=inside)
