"""Between the products of the experts: SwiGLU of the rows that the tiles hold, rounded to FP16 or quantized."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .moe_place import ENTRY
from .moe_scheme import Share
from .rows import (
    BLOCK,
    divider,
    e4m3,
    nan_max,
    quotient,
    row_amax,
    scale_of,
    store_chunk,
    store_codes,
    store_per_row,
)
from .swiglu import swiglu_row

IN_FP16, PER_EXPERT, PER_ROW, PER_BLOCK = (tl.constexpr(int(share)) for share in (Share.NONE, Share.EXPERT, Share.ROW, Share.BLOCK))


@triton.jit
def moe_hidden(
    gate_up_R2H, hidden_RH, scale, table, capacity,
    SHARE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """WIDTH is H; a CTA has ROWS of a TILE of the table.

    `scale` is read per expert [E], written per row [R] and per block [B, R]; codes of blocks fill whole blocks.
    """
    CTAS: tl.constexpr = TILE // ROWS
    if DEPENDENT:
        await_previous()
    tile = tl.program_id(0) // CTAS
    in_tile = (tl.program_id(0) % CTAS * ROWS + tl.arange(0, ROWS))[:, None]
    exists = tile < tl.load(table)
    entry = table + ENTRY + ENTRY * tile
    rows_R1 = tl.load(entry + 1, mask=exists, other=0).to(tl.int64) + in_tile
    inside_R1 = in_tile < tl.load(entry + 2, mask=exists, other=0)
    hidden = swiglu_row(gate_up_R2H, rows_R1, inside_R1, WIDTH, CHUNK)
    start_R1 = hidden_RH + rows_R1 * WIDTH
    if SHARE == IN_FP16:
        for number in tl.static_range(len(hidden)):
            store_chunk(start_R1, hidden[number].to(tl.float16), inside_R1, number, WIDTH, CHUNK)
    elif SHARE == PER_EXPERT:
        expert_scale = tl.load(scale + tl.load(entry, mask=exists, other=0))
        store_codes(start_R1, hidden, expert_scale, inside_R1, False, WIDTH, CHUNK)
    elif SHARE == PER_ROW:
        row_scale = scale_of(row_amax(hidden))
        store_per_row(scale, row_scale, rows_R1, inside_R1, LANES)
        store_codes(start_R1, hidden, row_scale, inside_R1, True, WIDTH, CHUNK)
    else:
        tl.static_assert(SHARE == PER_BLOCK)
        for number in tl.static_range(len(hidden)):
            _store_blocks(hidden[number], hidden_RH, scale, rows_R1, inside_R1, capacity, number, WIDTH, ROWS, CHUNK)


@triton.jit
def _store_blocks(
    hidden, codes_RK, scale_BR, rows_R1, inside_R1, capacity,
    number: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Codes and scales of a chunk, one scale for 128 channels; codes are zero from the width to the end of its last block."""
    COUNT: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    PER_CHUNK: tl.constexpr = CHUNK // BLOCK
    blocks = tl.reshape(hidden, (ROWS, PER_CHUNK, BLOCK))
    block_scale = scale_of(tl.reduce(tl.abs(blocks), 2, nan_max, keep_dims=True))
    negative, reciprocal = divider(block_scale)
    codes = tl.reshape(e4m3(quotient(blocks, negative, reciprocal)), (ROWS, CHUNK))
    store_chunk(codes_RK + rows_R1 * (COUNT * BLOCK), codes, inside_R1, number, COUNT * BLOCK, CHUNK)
    block = (tl.arange(0, PER_CHUNK) + number * PER_CHUNK)[None, :]
    place = scale_BR + (block * capacity + rows_R1)
    tl.store(place, tl.reshape(block_scale, (ROWS, PER_CHUNK)), mask=inside_R1 & (block < COUNT))
