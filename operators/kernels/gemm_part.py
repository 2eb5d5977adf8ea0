"""The matrix product of gemm.py over a part of K: PARTS neighboring CTAs share a tile, and gemm_sum.py adds what they give."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous, prefetch
from .finish import places_of


@triton.jit
def gemm_part(
    x_RK, weight_NK, partial_PRN, rows,
    N: tl.constexpr, K: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr, PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """FP32 sums over the part's steps, without scales. Parts of a tile differ by one step at most."""
    COLUMNS: tl.constexpr = (N + N_TILE - 1) // N_TILE
    STEPS: tl.constexpr = (K + K_TILE - 1) // K_TILE
    part = tl.program_id(0) % PARTS
    tile = tl.program_id(0) // PARTS
    row, channel = tile // COLUMNS * M_TILE, tile % COLUMNS * N_TILE
    begin, end = part * STEPS // PARTS * K_TILE, (part + 1) * STEPS // PARTS * K_TILE
    if DEPENDENT:
        if (row == 0) & (part == 0) & (channel + N_TILE <= N):  # for all parts of the tile
            BYTES: tl.constexpr = N_TILE * K * (weight_NK.dtype.element_ty.primitive_bitwidth // 8)
            prefetch(weight_NK + channel.to(tl.int64) * K, tl.arange(0, THREADS), BYTES, THREADS)
        await_previous()
    numbers = tl.minimum(row + tl.arange(0, M_TILE), rows - 1).to(tl.int64)  # beyond the edges the last one, not stored
    channels = tl.minimum(channel + tl.arange(0, N_TILE), N - 1).to(tl.int64)
    steps = tl.arange(0, K_TILE)
    x = x_RK + numbers[:, None] * K + (begin + steps)[None, :]
    weight = weight_NK + channels[None, :] * K + (begin + steps)[:, None]
    accumulator = tl.zeros((M_TILE, N_TILE), tl.float32)
    for start in range(begin, end, K_TILE):
        if K % K_TILE == 0:
            x_tile, weight_tile = tl.load(x), tl.load(weight)
        else:
            x_tile = tl.load(x, mask=steps[None, :] < K - start, other=0.0)
            weight_tile = tl.load(weight, mask=steps[:, None] < K - start, other=0.0)
        if PROMOTE:
            accumulator += tl.dot(x_tile, weight_tile, max_num_imprecise_acc=K_TILE)  # see gemm.py
        else:
            accumulator = tl.dot(x_tile, weight_tile, accumulator)
        x += K_TILE
        weight += K_TILE
    place, inside = places_of(row, channel, rows, N, M_TILE, N_TILE)
    tl.store(partial_PRN + part * rows.to(tl.int64) * N + place, accumulator, mask=inside)
