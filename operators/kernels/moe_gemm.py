"""The grouped product of the experts with ordinary loads: for few rows, odd strides, and GPUs without descriptors."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous, prefetch
from .moe_place import ENTRY
from .moe_scheme import Share
from .rows import BLOCK

TENSOR, EXPERT, ROW, CHANNEL, BLOCKS = (
    tl.constexpr(int(share)) for share in (Share.TENSOR, Share.EXPERT, Share.ROW, Share.CHANNEL, Share.BLOCK)
)


@triton.jit
def moe_gemm(
    x_RK, weight_NK, output_RN, x_scale, weight_scale, gate_R, table, capacity,
    N: tl.constexpr, K: tl.constexpr, X_STRIDE: tl.constexpr,
    X_SCALE: tl.constexpr, WEIGHT_SCALE: tl.constexpr, GATED: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr, DEPENDENT: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """FP16 [sorted rows, N]: x [sorted rows, K] @ the [N, K] of each tile's expert, of weights [E * N, K]; one CTA per tile.

    Scales of x: none, one, one per expert, one per row [R], or per block and row [B, R]. Of weights: none, one per channel [E * N], or per
    channel and block [E * N, B]. GATED multiplies by each row's gate. X_STRIDE: from row to row of x.
    """
    COLUMNS: tl.constexpr = (N + N_TILE - 1) // N_TILE
    tile = tl.program_id(0) // COLUMNS
    if DEPENDENT:
        if GATED:
            _prefetch_tile(weight_NK, table, tile, N, K, N_TILE, THREADS)
        await_previous()
    if tile < tl.load(table):
        entry = table + ENTRY + ENTRY * tile
        expert = tl.load(entry).to(tl.int64)
        row = tl.load(entry + 1).to(tl.int64) + tl.arange(0, M_TILE)
        inside = tl.arange(0, M_TILE) < tl.load(entry + 2)
        channel = tl.program_id(0) % COLUMNS * N_TILE + tl.arange(0, N_TILE)
        weight_row = expert * N + tl.minimum(channel, N - 1)  # channels beyond the edge read the last one; they are not stored
        accumulator = _sum(
            x_RK, weight_NK, x_scale, weight_scale, row, weight_row, inside, capacity,
            K, X_STRIDE, X_SCALE, WEIGHT_SCALE, PROMOTE, M_TILE, N_TILE, K_TILE,
        )  # fmt: skip
        factor = tl.full((M_TILE,), 1.0, tl.float32)
        if X_SCALE == TENSOR:
            factor *= tl.load(x_scale)
        elif X_SCALE == EXPERT:
            factor *= tl.load(x_scale + expert)
        elif X_SCALE == ROW:
            factor = tl.load(x_scale + row, mask=inside, other=0.0)
        if WEIGHT_SCALE == CHANNEL:
            accumulator *= factor[:, None] * tl.load(weight_scale + weight_row)[None, :]
        if GATED:
            accumulator *= tl.load(gate_R + row, mask=inside, other=0.0)[:, None]
        place = output_RN + row[:, None] * N + channel[None, :]
        tl.store(place, accumulator.to(tl.float16), mask=inside[:, None] & (channel < N)[None, :])


@triton.jit
def _prefetch_tile(weight_NK, table, tile, N: tl.constexpr, K: tl.constexpr, N_TILE: tl.constexpr, THREADS: tl.constexpr):
    """Ask for the weights of a tile while the launch before this one still runs. The one before that wrote the table."""
    channel = tl.program_id(0) % ((N + N_TILE - 1) // N_TILE) * N_TILE
    if (tile < tl.load(table, cache_modifier=".cg")) & (channel + N_TILE <= N):
        row = tl.load(table + ENTRY + ENTRY * tile, cache_modifier=".cg") * N + channel
        BYTES: tl.constexpr = N_TILE * K * (weight_NK.dtype.element_ty.primitive_bitwidth // 8)
        prefetch(weight_NK + row.to(tl.int64) * K, tl.arange(0, THREADS), BYTES, THREADS)


@triton.jit
def _sum(
    x_RK, weight_NK, x_scale, weight_scale, row, weight_row, inside, capacity,
    K: tl.constexpr, X_STRIDE: tl.constexpr, X_SCALE: tl.constexpr, WEIGHT_SCALE: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr,
):  # fmt: skip
    """The product over K in FP32; scales of blocks are applied step by step."""
    STEPS: tl.constexpr = (K + K_TILE - 1) // K_TILE
    steps = tl.arange(0, K_TILE)
    x = x_RK + row[:, None] * X_STRIDE + steps[None, :]
    weight = weight_NK + weight_row[None, :] * K + steps[:, None]
    accumulator = tl.zeros((M_TILE, N_TILE), tl.float32)
    for step in range(STEPS):
        left = K - step * K_TILE
        x_tile = tl.load(x, mask=inside[:, None] & (steps[None, :] < left), other=0.0)
        if K % K_TILE == 0:  # noqa: SIM108 - Triton takes one branch while compiling
            weight_tile = tl.load(weight)
        else:
            weight_tile = tl.load(weight, mask=steps[:, None] < left, other=0.0)
        if PROMOTE:
            # Without the last argument Triton moves the sum into the tensor core on all GPUs but Hopper's: nothing is promoted then.
            part = tl.dot(x_tile, weight_tile, max_num_imprecise_acc=K_TILE)
            if X_SCALE == BLOCKS:
                tl.static_assert(K_TILE == BLOCK)
                part *= tl.load(x_scale + (step * capacity + row), mask=inside, other=0.0)[:, None]
            if WEIGHT_SCALE == BLOCKS:
                part *= tl.load(weight_scale + weight_row * STEPS + step)[None, :]
            accumulator += part
        else:
            accumulator = tl.dot(x_tile, weight_tile, accumulator)
        x += K_TILE
        weight += K_TILE
    return accumulator
