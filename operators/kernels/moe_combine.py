"""The sum over a token's experts: their gated rows in expert order, the residual last, in FP32; one rounding to FP16."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .rows import chunk_mask, row_numbers, store_chunk


@triton.jit
def moe_combine(
    y_RD, row_NS, residual_ND, output_ND, rows,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`row_NS` holds each token's rows of y in ascending order, which is that of its experts; -1 is none."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    for number in tl.static_range((WIDTH + CHUNK - 1) // CHUNK):
        total, residual = combined(y_RD, row_NS, residual_ND, rows_R1, inside_R1, number, WIDTH, SLOTS, ROWS, CHUNK)
        store_chunk(output_ND + rows_R1 * WIDTH, (total + residual.to(tl.float32)).to(tl.float16), inside_R1, number, WIDTH, CHUNK)


@triton.jit
def combined(
    y_RD, row_NS, residual_ND, rows_R1, inside_R1, number: tl.constexpr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A chunk of each token's experts, added up in FP32, and of its residual in FP16; zero beyond the width and outside."""
    columns = (tl.arange(0, CHUNK) + number * CHUNK)[None, :]
    mask = chunk_mask(inside_R1, number, WIDTH, CHUNK)
    total = tl.zeros((ROWS, CHUNK), tl.float32)
    residual = tl.load(residual_ND + rows_R1 * WIDTH + columns, mask=mask, other=0.0)
    for slot in tl.static_range(SLOTS):
        row_R1 = tl.load(row_NS + rows_R1 * SLOTS + slot, mask=inside_R1, other=-1).to(tl.int64)
        total += tl.load(y_RD + row_R1 * WIDTH + columns, mask=mask & (row_R1 >= 0), other=0.0).to(tl.float32)
    return total, residual
