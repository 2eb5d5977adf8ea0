"""The matrix product of few rows: a CTA asks for all its weights at once, before it waits for the launch before it.

Weights are constants of the plan, so nothing that still runs writes them. K is split over the warps of a CTA, whose sums are added in
the order of the warps, and over CTAs where one cannot hold its weights in registers or too few CTAs would run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .finish import finish, scales_and_residual, scales_of_weights


@triton.jit
def gemm_few(
    x_RK, weight_NK, output_PRN, scale, weight_scale_N, residual_RN, rows,
    N: tl.constexpr, K: tl.constexpr,
    SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr, PROMOTE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, K_TILE: tl.constexpr, SLICES: tl.constexpr, PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A step of a CTA is K_TILE channels for each of SLICES warps. PARTS neighboring CTAs share a tile's K and store apart."""
    COLUMNS: tl.constexpr = (N + N_TILE - 1) // N_TILE
    STEP: tl.constexpr = SLICES * K_TILE
    STEPS: tl.constexpr = (K + STEP * PARTS - 1) // (STEP * PARTS)
    WHOLE: tl.constexpr = STEPS * STEP * PARTS == K
    part = tl.program_id(0) % PARTS
    tile = tl.program_id(0) // PARTS
    row, channel = tile // COLUMNS * M_TILE, tile % COLUMNS * N_TILE
    inputs = part * (STEPS * STEP) + (tl.arange(0, SLICES)[:, None] * K_TILE + tl.arange(0, K_TILE)[None, :])[:, None, :]
    channels = tl.minimum(channel + tl.arange(0, N_TILE), N - 1).to(tl.int64)[None, :, None]  # beyond the edge the last one, not stored
    weights = ()
    for step in tl.static_range(STEPS):
        place = weight_NK + channels * K + inputs + step * STEP
        weight = tl.load(place) if WHOLE else tl.load(place, mask=inputs < K - step * STEP, other=0.0)
        weights = weights + (weight,)  # type: ignore[assignment]  # noqa: RUF005
    weight_scale = scales_of_weights(weight_scale_N, channel, SCALED, N, N_TILE)
    if DEPENDENT:
        await_previous()
    row_scale, residual = scales_and_residual(scale, residual_RN, row, channel, rows, SCALED, ROW_SCALES, RESIDUAL, N, M_TILE, N_TILE)
    numbers = (row + tl.arange(0, M_TILE)).to(tl.int64)[None, :, None]
    accumulator = tl.zeros((SLICES, M_TILE, N_TILE), tl.float32)
    for step in tl.static_range(STEPS):
        known = numbers < rows if WHOLE else (numbers < rows) & (inputs < K - step * STEP)
        x_tile = tl.load(x_RK + numbers * K + inputs + step * STEP, mask=known, other=0.0)
        weight_tile = tl.permute(weights[step], (0, 2, 1))
        if PROMOTE:
            accumulator += tl.dot(x_tile, weight_tile, max_num_imprecise_acc=K_TILE)  # see gemm.py
        else:
            accumulator = tl.dot(x_tile, weight_tile, accumulator)
    output_RN = output_PRN + part * rows.to(tl.int64) * N
    finish(tl.sum(accumulator, 0), output_RN, row_scale, weight_scale, residual, row, channel, rows, SCALED, RESIDUAL, N, M_TILE, N_TILE)
