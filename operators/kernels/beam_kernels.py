"""Kernels of BeamStep and of its forms that follow a catalogue: partial sums, normalizers, selection, places.

MASKED kernels see a bit for each logit, which says whether it is a candidate; where there are fewer candidates than beams, what
is kept instead has the number -1. The bits of all rows lie one after the other, or, PLACED, each row's at an address of its own.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .attention import exp2
from .beam_select import as_key, as_word, from_signed, key_of, selected, value_of

TILE = 128  # logits with one partial: the columns of a tile of the head's product
UNIT = 8  # logits of one load, and bits of a byte of the mask
_TILE, _UNIT = tl.constexpr(TILE), tl.constexpr(UNIT)
_UNITS = tl.constexpr(TILE // UNIT)
_LOG2E = tl.constexpr(math.log2(math.e))
OPEN, MASKED_ROWS, PLACED_ROWS = range(3)
_PLACED = tl.constexpr(PLACED_ROWS)
_NO_KEY = tl.constexpr(-(1 << 31))  # of a tile without a candidate, in the order of signed words


@triton.jit
def total_key(logit, normalizer_N, score_N, row, present):
    """Key of (logit - normalizer) + score, rounded in this order."""
    normalizer = tl.load(normalizer_N + row, mask=present, other=0.0)
    return key_of(logit - normalizer + tl.load(score_N + row, mask=present, other=0.0), present)


@triton.jit
def beam_partials(logits_NV, largest_NT, sum_NT, tiles, V: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr):
    """COUNT neighboring tiles of all `tiles`; TILES of a row, the last of which V may cut."""
    store_partials(tl.program_id(0).to(tl.int64) * COUNT, logits_NV, largest_NT, sum_NT, tiles, V, TILES, COUNT)


@triton.jit
def store_partials(first, logits_NV, largest_NT, sum_NT, tiles, V: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr):
    """Read COUNT tiles from the one numbered `first` on, and store what the rows need of them."""
    number = tl.arange(0, COUNT)
    within = (first % TILES).to(tl.int32) + number
    row = within // TILES
    column = ((within % TILES) * _TILE)[:, None] + tl.arange(0, _TILE)[None, :]
    inside = first + number < tiles
    mask = inside[:, None]
    if TILES * _TILE != V:
        mask = mask & (column < V)
    pointer = logits_NV + first // TILES * V + (row * V)[:, None] + column
    x = tl.load(pointer, mask=mask, other=float("-inf")).to(tl.float32)
    largest = tl.max(x, 1)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # a tile of -inf alone adds 0 to its row's sum
    tl.store(largest_NT + first + number, largest.to(tl.float16), mask=inside)
    tl.store(sum_NT + first + number, tl.sum(exp2((x - base[:, None]) * _LOG2E), 1), mask=inside)


@triton.jit
def beam_totals(
    largest_NT, valid_NT, sum_NT, score_N, normalizer_N, key_NG, rows,
    TILES: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, GROUPS_TILE: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """COUNT rows. A row without a finite logit, with +inf or with NaN has the normalizer NaN.

    `valid_NT`: of each tile the key of the largest logit that is a candidate, as a signed word; without a mask `largest_NT`.
    """
    row = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    group = tl.arange(0, GROUPS_TILE)[None, :]
    tile = group[:, :, None] * SPAN + tl.arange(0, SPAN)[None, None, :]
    place = row[:, None, None] * TILES + tile
    inside = (row < rows)[:, None, None] & (tile < TILES)
    largest = tl.load(largest_NT + place, mask=inside, other=float("-inf")).to(tl.float32)
    best = tl.max(largest, 2)
    most = tl.max(best, 1)
    scaled = tl.load(sum_NT + place, mask=inside, other=0.0) * tl.exp(largest - most[:, None, None])
    normalizer = most + tl.log(tl.sum(tl.sum(scaled, 2), 1))
    score = tl.load(score_N + row, mask=row < rows, other=0.0)
    present = group < GROUPS
    if MASKED:
        most_valid = from_signed(tl.max(tl.load(valid_NT + place, mask=inside, other=_NO_KEY), 2))
        best = value_of(most_valid)
        present = present & (most_valid != 0)
    key = key_of(best - normalizer[:, None] + score[:, None], present)
    tl.store(normalizer_N + row, normalizer, mask=row < rows)
    tl.store(key_NG + row[:, None] * GROUPS + group, as_word(key), mask=(row < rows)[:, None] & (group < GROUPS))


@triton.jit
def keep(key_N, number_N, kept_K, KEEP: tl.constexpr, MASKED: tl.constexpr):
    """The numbers of the KEEP largest keys, in the order of their positions; all threads see them afterwards."""
    take, place = selected(key_N, KEEP, MASKED)
    if MASKED:
        number_N = tl.where(key_N != 0, number_N, -1)
    tl.store(kept_K + place, number_N, mask=take)
    tl.debug_barrier()


@triton.jit
def keep_groups(
    group_key_N, kept_K, ROWS: tl.constexpr, GROUPS: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys come from memory; the number of a group is row * GROUPS + group."""
    position = tl.arange(0, SIZE)
    word = tl.load(group_key_N + position, mask=position < ROWS * GROUPS, other=0)
    keep(as_key(word), position, kept_K, KEEP, MASKED)


@triton.jit
def keep_tiles(
    valid_RT, normalizer_R, score_R, group_K, kept_K,
    GROUPS: tl.constexpr, SPAN: tl.constexpr, TILES: tl.constexpr,
    FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Of FROM groups; the number of a tile is row * TILES + tile."""
    position = tl.arange(0, SIZE)
    inside = position < FROM * SPAN
    group = tl.load(group_K + position // SPAN, mask=inside, other=0)
    row = group // GROUPS
    tile = group % GROUPS * SPAN + position % SPAN
    present = inside & (tile < TILES)
    if MASKED:
        present = present & (group >= 0)
    number = row * TILES + tile
    if MASKED:
        valid = from_signed(tl.load(valid_RT + number, mask=present, other=_NO_KEY))
        present = present & (valid != 0)
        largest = value_of(valid)
    else:
        largest = tl.load(valid_RT + number, mask=present, other=0.0).to(tl.float32)
    keep(total_key(largest, normalizer_R, score_R, row, present), number, kept_K, KEEP, MASKED)


@triton.jit
def unit_at(position, tile_K, TILES: tl.constexpr, V: tl.constexpr, FROM: tl.constexpr, MASKED: tl.constexpr):
    """Row and first column of the unit at a position among those of FROM tiles, and whether it holds a logit."""
    inside = position < FROM * _UNITS
    tile = tl.load(tile_K + position // _UNITS, mask=inside, other=0)
    column = tile % TILES * _TILE + position % _UNITS * _UNIT
    present = inside & (column < V)
    if MASKED:
        present = present & (tile >= 0)
    return tile // TILES, column, present


@triton.jit
def bits_of(mask_RM, row, present, TILES: tl.constexpr, MASKED: tl.constexpr):
    """Where the bits of rows begin."""
    if MASKED == _PLACED:
        bits = tl.load(mask_RM + row, mask=present, other=0).to(tl.pointer_type(tl.int8))
    else:
        bits = mask_RM + row * (TILES * _UNITS)
    return bits


@triton.jit
def keep_units(
    logits_RV, mask_RM, normalizer_R, score_R, tile_K, key_U, kept_K,
    TILES: tl.constexpr, V: tl.constexpr, FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Of FROM tiles; the number of a unit is the flat index of its first logit. Reads CHUNK units at a time to spare registers."""
    lane = tl.arange(0, _UNIT)[None, :]
    for first in range(0, SIZE, CHUNK):
        position = first + tl.arange(0, CHUNK)
        row, column, present = unit_at(position, tile_K, TILES, V, FROM, MASKED)
        mask = present[:, None]
        if TILES * _TILE != V:
            mask = mask & (column[:, None] + lane < V)
        logit = tl.load(logits_RV + (row * V + column)[:, None] + lane, mask=mask, other=float("-inf"))
        if MASKED:  # logits and mask are on their way at the same time
            bits = bits_of(mask_RM, row, present, TILES, MASKED)
            byte = tl.load(bits + column // _UNIT, mask=present, other=0).to(tl.int32) & 0xFF
            present = byte != 0
            logit = tl.where(((byte[:, None] >> lane) & 1) != 0, logit, float("-inf"))
        largest = tl.max(logit, 1).to(tl.float32)
        tl.store(key_U + position, as_word(total_key(largest, normalizer_R, score_R, row, present)))
    tl.debug_barrier()
    every = tl.arange(0, SIZE)
    row_U, column_U, _present = unit_at(every, tile_K, TILES, V, FROM, MASKED)
    keep(as_key(tl.load(key_U + every)), row_U * V + column_U, kept_K, KEEP, MASKED)


@triton.jit
def keep_candidates(
    logits_RV, mask_RM, normalizer_R, score_R, unit_K, key_W, flat_W,
    V: tl.constexpr, TILES: tl.constexpr, FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Of FROM units: keys and flat indices, in flat order."""
    position = tl.arange(0, SIZE)
    inside = position < FROM * _UNIT
    unit = tl.load(unit_K + position // _UNIT, mask=inside, other=0)
    row = unit // V
    flat = unit + position % _UNIT
    present = inside & (flat - row * V < V)
    if MASKED:
        present = present & (unit >= 0)
        bits = bits_of(mask_RM, row, present, TILES, MASKED)
        byte = tl.load(bits + (unit - row * V) // _UNIT, mask=present, other=0).to(tl.int32)
        present = present & (((byte >> (position % _UNIT)) & 1) != 0)
    logit = tl.load(logits_RV + flat, mask=present, other=0.0).to(tl.float32)
    key = total_key(logit, normalizer_R, score_R, row, present)
    take, place = selected(key, KEEP, MASKED)
    tl.store(key_W + place, as_word(key), mask=take)
    tl.store(flat_W + place, flat, mask=take)


@triton.jit
def beam_pick(
    logits_NV, mask_NM, score_N, valid_NT, normalizer_N, group_key_BN, kept_B3W, unit_key_BU, key_BW, flat_BW,
    ROWS: tl.constexpr, V: tl.constexpr, TILES: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, KEPT_TILES: tl.constexpr, KEPT_UNITS: tl.constexpr, CHUNK: tl.constexpr,
    GROUPS_SIZE: tl.constexpr, TILES_SIZE: tl.constexpr, UNITS_SIZE: tl.constexpr, CANDIDATES_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """A request; TILES and GROUPS of a row, SIZEs of the four selections. Positions and numbers are in the order of flat indices."""
    user = tl.program_id(0).to(tl.int64)
    logits_RV = logits_NV + user * (ROWS * V)
    normalizer_R = normalizer_N + user * ROWS
    score_R = score_N + user * ROWS
    group_K = kept_B3W + user * (3 * WIDTH)
    tile_K = group_K + WIDTH
    unit_K = tile_K + WIDTH
    keep_groups(group_key_BN + user * (ROWS * GROUPS), group_K, ROWS, GROUPS, KEPT_GROUPS, GROUPS_SIZE, MASKED)
    valid_RT = valid_NT + user * (ROWS * TILES)
    keep_tiles(valid_RT, normalizer_R, score_R, group_K, tile_K, GROUPS, SPAN, TILES, KEPT_GROUPS, KEPT_TILES, TILES_SIZE, MASKED)
    mask_RM = mask_NM
    if MASKED == _PLACED:
        mask_RM = mask_NM + user * ROWS
    elif MASKED:
        mask_RM = mask_NM + user * (ROWS * TILES * _UNITS)
    key_U = unit_key_BU + user * UNITS_SIZE
    keep_units(
        logits_RV, mask_RM, normalizer_R, score_R, tile_K, key_U, unit_K, TILES, V, KEPT_TILES, KEPT_UNITS, UNITS_SIZE, CHUNK, MASKED
    )
    key_W, flat_W = key_BW + user * WIDTH, flat_BW + user * WIDTH
    keep_candidates(logits_RV, mask_RM, normalizer_R, score_R, unit_K, key_W, flat_W, V, TILES, KEPT_UNITS, WIDTH, CANDIDATES_SIZE, MASKED)


@triton.jit
def beam_finish(
    key_BW, flat_BW, limits_B3, best_BW, parent_BW, token_BW,
    V: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """COUNT candidates of a request, which stand in flat order. With a mask, the first number of a request's limits is its beams."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    own = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    inside = own < WIDTH
    key = as_key(tl.load(key_BW + start + own, mask=inside, other=0))
    rank = tl.zeros((COUNT,), tl.int32)
    for first in range(0, WIDTH, CHUNK):
        other = first + tl.arange(0, CHUNK)
        theirs = as_key(tl.load(key_BW + start + other, mask=other < WIDTH, other=0))
        earlier = other[None, :] < own[:, None]
        ahead = (theirs[None, :] > key[:, None]) | ((theirs[None, :] == key[:, None]) & earlier)
        rank += tl.sum(ahead.to(tl.int32), 1)
    flat = tl.load(flat_BW + start + own, mask=inside, other=0)
    best = value_of(key)
    parent, token = flat // V, flat % V
    if MASKED:
        found = (key != 0) & (rank < tl.load(limits_B3 + tl.program_id(0) * 3))
        best = tl.where(found, best, float("-inf"))
        parent = tl.where(found, parent, 0)
        token = tl.where(found, token, -1)
    tl.store(best_BW + start + rank, best, mask=inside)
    tl.store(parent_BW + start + rank, parent.to(tl.int64), mask=inside)
    tl.store(token_BW + start + rank, token.to(tl.int64), mask=inside)
