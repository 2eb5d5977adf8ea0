"""Pieces of the memory-bound kernels: a row is read once and stays in registers as chunks of one layout.

A tile is [ROWS, CHUNK]; with 256 columns per warp each lane moves 16 bytes of FP16 at a time, and where a warp owns its row no
reduction leaves the warp. A width that no chunk divides wastes lanes of the last chunk only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...core import precision

E4M3_MAX = tl.constexpr(precision.E4M3_MAX)
AMAX_FLOOR = tl.constexpr(precision.AMAX_FLOOR)
BLOCK = tl.constexpr(precision.BLOCK)


@triton.jit
def row_numbers(ROWS: tl.constexpr):
    """Rows [ROWS, 1] of this CTA, 64 bits: 65536 rows of 28672 values pass 2^31 - 1 elements' bytes."""
    return (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]


@triton.jit
def chunk_mask(inside_R1, number: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Where a chunk holds values: in full chunks wherever the row does."""
    mask = inside_R1
    if (number + 1) * CHUNK > WIDTH:
        mask = inside_R1 & (tl.arange(0, CHUNK)[None, :] < WIDTH - number * CHUNK)
    return mask


@triton.jit
def load_row(start_R1, inside_R1, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """FP32 chunks of rows that begin at the pointers `start_R1`; zero beyond the width and outside. Triton knows no starred expressions."""
    chunks = ()
    for number in tl.static_range((WIDTH + CHUNK - 1) // CHUNK):
        pointer = start_R1 + (tl.arange(0, CHUNK) + number * CHUNK)[None, :]
        chunk = tl.load(pointer, mask=chunk_mask(inside_R1, number, WIDTH, CHUNK), other=0.0)
        chunks = chunks + (chunk.to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return chunks


@triton.jit
def store_chunk(start_R1, chunk, inside_R1, number: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Store one chunk, rounded to what the pointer points to."""
    pointer = start_R1 + (tl.arange(0, CHUNK) + number * CHUNK)[None, :]
    tl.store(pointer, chunk, mask=chunk_mask(inside_R1, number, WIDTH, CHUNK))


@triton.jit
def store_per_row(pointer, value_R1, rows_R1, inside_R1, LANES: tl.constexpr):
    """One value per row, stored by the first of the lanes that own it.

    The address is `pointer + row` there; it goes on along the lanes only so that the compiler lays lanes along the row, as the
    chunks are, and the value need not change its layout through shared memory.
    """
    lane = tl.arange(0, LANES)[None, :]
    tl.store(pointer + rows_R1 + lane, value_R1 + lane * 0.0, mask=inside_R1 & (lane == 0))


@triton.jit
def nan_max(a, b):
    """The larger, or NaN if one is: torch.amax does so, tl.max does not."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def row_amax(chunks):
    """AbsMax [ROWS, 1]."""
    largest = tl.abs(chunks[0])
    for number in tl.static_range(1, len(chunks)):
        largest = nan_max(largest, tl.abs(chunks[number]))
    return tl.reduce(largest, 1, nan_max, keep_dims=True)


@triton.jit
def scale_of(amax):
    """FP32 scale that maps `amax` to the largest E4M3 value (docs/numerics.md)."""
    return tl.div_rn(nan_max(amax, AMAX_FLOOR), E4M3_MAX)


@triton.jit
def divider(divisor):
    """What `quotient` wants of a divisor that many values share: its negative (0 where infinite) and its reciprocal, correctly rounded.

    Negated here, once: the compiler would compute the negative of every product in an instruction of its own.
    """
    return tl.where(divisor == float("inf"), 0.0, -divisor), tl.div_rn(1.0, divisor)


@triton.jit
def quotient(x, negative, reciprocal):
    """x / divisor, correctly rounded, in three instructions; `negative` and `reciprocal` come from `divider`.

    One Newton step on the remainder, which is exact in an FMA, makes the product with a correctly rounded reciprocal the
    correctly rounded quotient (P. Markstein, IA-64 and Elementary Functions, chapter 8). With an infinite divisor finite
    x give 0 and others NaN, as they must. Infinite x over a finite divisor gives NaN: where that can be, see `saturated_quotient`.
    """
    product = x * reciprocal
    return tl.fma(tl.fma(product, negative, x), reciprocal, product)


@triton.jit
def saturated_quotient(x, negative, reciprocal):
    """The same, and infinity for infinite x: a constant scale knows nothing of the values, a row's scale is infinite with them."""
    exact = quotient(x, negative, reciprocal)
    return tl.where(exact == exact, exact, x * reciprocal)


@triton.jit
def e4m3(scaled):
    """Round FP32 to E4M3. The instruction (cvt.rn.satfinite) saturates, NaN stays NaN."""
    return scaled.to(tl.float8e4nv)


@triton.jit
def store_codes(start_R1, chunks, scale, inside_R1, SCALE_IS_OF_ROW: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Quantize and store a row whose scale is known."""
    negative, reciprocal = divider(scale)
    for number in tl.static_range(len(chunks)):
        if SCALE_IS_OF_ROW:
            codes = e4m3(quotient(chunks[number], negative, reciprocal))
        else:
            codes = e4m3(saturated_quotient(chunks[number], negative, reciprocal))
        store_chunk(start_R1, codes, inside_R1, number, WIDTH, CHUNK)
