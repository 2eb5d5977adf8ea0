"""The second launch of a product whose K is split over CTAs: parts added in their order, scales, residual, one rounding."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .finish import finish, places_of, scales_and_residual, scales_of_weights


@triton.jit
def gemm_sum(
    partial_PRN, output_RN, scale, weight_scale_N, residual_RN, rows,
    N: tl.constexpr, SCALED: tl.constexpr, ROW_SCALES: tl.constexpr, RESIDUAL: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, PARTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """All parts are asked for before the first is added."""
    COLUMNS: tl.constexpr = (N + N_TILE - 1) // N_TILE
    row, channel = tl.program_id(0) // COLUMNS * M_TILE, tl.program_id(0) % COLUMNS * N_TILE
    weight_scale = scales_of_weights(weight_scale_N, channel, SCALED, N, N_TILE)
    if DEPENDENT:
        await_previous()
    row_scale, residual = scales_and_residual(scale, residual_RN, row, channel, rows, SCALED, ROW_SCALES, RESIDUAL, N, M_TILE, N_TILE)
    place, inside = places_of(row, channel, rows, N, M_TILE, N_TILE)
    total = tl.load(partial_PRN + place, mask=inside, other=0.0)
    parts = (total,)
    for part in tl.static_range(1, PARTS):
        partial = tl.load(partial_PRN + part * rows.to(tl.int64) * N + place, mask=inside, other=0.0)
        parts = parts + (partial,)  # type: ignore[assignment]  # noqa: RUF005
    for part in tl.static_range(1, PARTS):
        total += parts[part]
    finish(total, output_RN, row_scale, weight_scale, residual, row, channel, rows, SCALED, RESIDUAL, N, M_TILE, N_TILE)
