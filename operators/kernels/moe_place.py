"""Brings the rows of each expert together: their order, the table of tiles, and copies of codes, scales and gates in that order.

moe_rank.py has numbered the entries, which are a token and one of its slots. Experts follow each other; the entries of one stand in token
order and begin at a multiple of ALIGN rows.

A product walks tiles, each of one expert. A table, one for each product, holds the number of tiles, three unused numbers, then four for
every tile: its expert, its first sorted row, how many rows are filled, and an unused one.

Rows between the groups hold whatever the memory held. Every later kernel keeps rows apart, and nobody reads their results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependent import await_previous
from .rows import chunk_mask, store_chunk

ENTRY = tl.constexpr(4)  # numbers of a tile in a table, and before the first one
NOWHERE = tl.constexpr(0x7FFFFFFF)  # behind every row: slots of experts that do not exist
AT_A_TIME = tl.constexpr(16)  # tiles of the table


@triton.jit
def moe_place(
    x_NK, x_scale_NB, index_NS, weight_NS, rank_NS, total_E, before_BE,
    x_RK, x_scale_BR, gate_R, row_NS, up_table, down_table, rows, capacity,
    WIDTH: tl.constexpr, SCALES: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
    ALIGN: tl.constexpr, UP_TILE: tl.constexpr, DOWN_TILE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    SLOT_TILE: tl.constexpr, EXPERT_TILE: tl.constexpr, SCALE_TILE: tl.constexpr, TOKENS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The first two CTAs write the tables, each other one places ROWS tokens.

    TOKENS: of a block whose entries are numbered by themselves, and `before_BE` says how many of an expert are before it; 0: all entries
    are numbered in one. SCALES: scales of a row; 0 where it has none. `capacity`: rows of the sorted buffers. SLOT_TILE, EXPERT_TILE
    and SCALE_TILE are SLOTS, EXPERTS and SCALES, rounded up to powers of two.
    """
    if DEPENDENT:
        await_previous()
    tl.static_assert(TOKENS % ROWS == 0)
    experts = tl.arange(0, EXPERT_TILE)
    total = tl.load(total_E + experts, mask=experts < EXPERTS, other=0)
    group = (total + ALIGN - 1) // ALIGN * ALIGN
    first = tl.cumsum(group, 0) - group
    if tl.program_id(0) == 0:
        _write_table(up_table, total, first, UP_TILE)
    elif tl.program_id(0) == 1:
        _write_table(down_table, total, first, DOWN_TILE)
    else:
        token = (tl.program_id(0) - 2) * ROWS
        if TOKENS > 0:
            first += tl.load(before_BE + token // TOKENS * EXPERT_TILE + experts, mask=experts < EXPERTS, other=0)
        tokens = token + tl.arange(0, ROWS)
        slots = tl.arange(0, SLOT_TILE)
        entry = tokens[:, None] * SLOTS + slots[None, :]
        exists = (tokens[:, None] < rows) & (slots[None, :] < SLOTS)
        expert = tl.load(index_NS + entry, mask=exists, other=-1)
        valid = (expert >= 0) & (expert < EXPERTS)
        start = tl.sum(tl.where(expert[:, :, None] == experts[None, None, :], first[None, None, :], 0), 2)
        row = tl.where(valid, start + tl.load(rank_NS + entry, mask=valid, other=0), NOWHERE)
        tl.store(gate_R + row, tl.load(weight_NS + entry, mask=valid, other=0.0), mask=valid)
        place = tokens[:, None] * SLOTS + _order(row, slots)
        tl.store(row_NS + place, tl.where(valid, row, -1), mask=exists)
        if SCALES > 0:
            _copy_scales(x_scale_NB, x_scale_BR, tokens, row, slots, rows, capacity, SCALES, SLOTS, SCALE_TILE)
        _copy_rows(x_NK, x_RK, tokens, row, slots, rows, WIDTH, SLOTS, CHUNK)


@triton.jit
def _write_table(table, total, first, TILE: tl.constexpr):
    """Every tile's expert, first row and filled rows. `total` and `first`: rows of each expert, and where they begin."""
    tiles = (total + TILE - 1) // TILE
    start = tl.cumsum(tiles, 0) - tiles
    count = tl.sum(tiles, 0)
    tl.store(table, count)
    experts = tl.arange(0, total.shape[0])
    for begin in range(0, count, AT_A_TIME):
        tile = begin + tl.arange(0, AT_A_TIME)
        own = (tile[:, None] >= start[None, :]) & (tile[:, None] < (start + tiles)[None, :])
        done = (tile[:, None] - start[None, :]) * TILE
        place = table + ENTRY + ENTRY * tile
        tl.store(place, tl.sum(tl.where(own, experts[None, :], 0), 1), mask=tile < count)
        tl.store(place + 1, tl.sum(tl.where(own, first[None, :] + done, 0), 1), mask=tile < count)
        tl.store(place + 2, tl.sum(tl.where(own, tl.minimum(total[None, :] - done, TILE), 0), 1), mask=tile < count)


@triton.jit
def _order(row, slots):
    """Each slot's place among those of its token, by row: rows of a token in this order are its experts in theirs."""
    earlier = (row[:, None, :] < row[:, :, None]) | ((row[:, None, :] == row[:, :, None]) & (slots[None, None, :] < slots[None, :, None]))
    return tl.sum(earlier.to(tl.int32), 2)


@triton.jit
def _row_of(row, slots, slot: tl.constexpr):
    """Sorted rows [ROWS, 1] of one slot, 64 bits."""
    return tl.sum(tl.where(slots[None, :] == slot, row, 0), 1).to(tl.int64)[:, None]


@triton.jit
def _copy_scales(
    scale_NB, scale_BR, tokens, row, slots, rows, capacity, SCALES: tl.constexpr, SLOTS: tl.constexpr, SCALE_TILE: tl.constexpr
):
    """Scales of tokens [N, B] to [B, sorted rows], which the products read along the rows."""
    blocks = tl.arange(0, SCALE_TILE)[None, :]
    exists = (tokens[:, None] < rows) & (blocks < SCALES)
    scale = tl.load(scale_NB + tokens[:, None] * SCALES + blocks, mask=exists, other=0.0)
    for slot in tl.static_range(SLOTS):
        target = _row_of(row, slots, slot)
        tl.store(scale_BR + (blocks * capacity + target), scale, mask=exists & (target != NOWHERE))


@triton.jit
def _copy_rows(x_NK, x_RK, tokens, row, slots, rows, WIDTH: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
    """Every token's row, read once, to the places of its slots."""
    tokens_R1 = tokens.to(tl.int64)[:, None]
    inside_R1 = tokens_R1 < rows
    for number in tl.static_range((WIDTH + CHUNK - 1) // CHUNK):
        pointer = x_NK + tokens_R1 * WIDTH + (tl.arange(0, CHUNK) + number * CHUNK)[None, :]
        chunk = tl.load(pointer, mask=chunk_mask(inside_R1, number, WIDTH, CHUNK))
        for slot in tl.static_range(SLOTS):
            target = _row_of(row, slots, slot)
            store_chunk(x_RK + target * WIDTH, chunk, inside_R1 & (target != NOWHERE), number, WIDTH, CHUNK)
