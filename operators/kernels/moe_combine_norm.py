"""Combine and the norm behind it in one launch: a token's sum stays in registers, rounded to FP16, until the norm is made of it."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .moe_combine import combined
from .rms_norm import norm_chunks
from .rms_norm_quant import store_quantized
from .rows import row_numbers, store_chunk


@triton.jit
def moe_combine_norm(
    y_RD, row_NS, residual_ND, sum_ND, weight_D, norm_ND, rows, epsilon,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Arguments as those of `moe_combine`, then those of `rms_norm`."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    total = _stored_sum(y_RD, row_NS, residual_ND, sum_ND, rows_R1, inside_R1, WIDTH, SLOTS, ROWS, CHUNK)
    normed = norm_chunks(total, weight_D, rows_R1, inside_R1, epsilon, WIDTH, CHUNK)
    for number in tl.static_range(len(normed)):
        store_chunk(norm_ND + rows_R1 * WIDTH, normed[number].to(tl.float16), inside_R1, number, WIDTH, CHUNK)


@triton.jit
def moe_combine_norm_quant(
    y_RD, row_NS, residual_ND, sum_ND, weight_D, codes_ND, scale, norm_ND, rows, epsilon,
    GRANULARITY: tl.constexpr, STORE_NORM: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Arguments as those of `moe_combine`, then those of `rms_norm_quant`."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    total = _stored_sum(y_RD, row_NS, residual_ND, sum_ND, rows_R1, inside_R1, WIDTH, SLOTS, ROWS, CHUNK)
    normed = norm_chunks(total, weight_D, rows_R1, inside_R1, epsilon, WIDTH, CHUNK)
    store_quantized(normed, codes_ND, scale, norm_ND, rows_R1, inside_R1, GRANULARITY, STORE_NORM, WIDTH, ROWS, CHUNK, LANES)


@triton.jit
def _stored_sum(
    y_RD, row_NS, residual_ND, sum_ND, rows_R1, inside_R1,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Store the rows' sums; FP32 chunks of what was stored."""
    chunks = ()
    for number in tl.static_range((WIDTH + CHUNK - 1) // CHUNK):
        total, residual = combined(y_RD, row_NS, residual_ND, rows_R1, inside_R1, number, WIDTH, SLOTS, ROWS, CHUNK)
        rounded = (total + residual.to(tl.float32)).to(tl.float16)
        store_chunk(sum_ND + rows_R1 * WIDTH, rounded, inside_R1, number, WIDTH, CHUNK)
        chunks = chunks + (rounded.to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return chunks
