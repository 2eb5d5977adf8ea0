"""The second token of a catalogue's semantic IDs: the pass over the logits with the pair table beside it, and the rules of categories.

A row's bits are those of its first code in the pair table: where they lie is all that the selection needs. Only where a request restricts
categories they are made first, from the classes of the row's pairs.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ...runtime.item_index import WORD
from ..item_mask import RESTRICTED
from .attention import exp2
from .beam_kernels import TILE, UNIT
from .beam_select import as_signed, key_of

LANES = 4  # neighboring threads that share a tile: 32 logits each
_TILE, _UNIT, _UNITS, _WORD = tl.constexpr(TILE), tl.constexpr(UNIT), tl.constexpr(TILE // UNIT), tl.constexpr(WORD)
_WORDS, _LANES, _EACH = tl.constexpr(TILE // WORD), tl.constexpr(LANES), tl.constexpr(TILE // UNIT // LANES)
_LOG2E, _RESTRICTED = tl.constexpr(math.log2(math.e)), tl.constexpr(RESTRICTED)


@triton.jit
def ones_in(word):
    """Set bits of a UINT32, added up in fields of 2, 4 and 8 bits."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def odd_below(word):
    """Bit by bit whether an odd number of bits is set up to and with it."""
    for step in tl.static_range(5):
        word ^= word << (1 << step)
    return word


@triton.jit
def spread(bits, mask):
    """The lowest of `bits` at the places that are set in `mask`, both UINT32: the first at the lowest, and so on.

    Each bit moves up by the number of unset places below its own. Step by step, from 16 places to 1, those bits move whose number
    has that power of two in it (Warren, Hacker's Delight, section 7-5).
    """
    left, gaps = mask, (mask ^ 0xFFFFFFFF) << 1
    odd = odd_below(gaps)
    move_1 = odd & left
    left, gaps = (left ^ move_1) | (move_1 >> 1), gaps & (odd ^ 0xFFFFFFFF)
    odd = odd_below(gaps)
    move_2 = odd & left
    left, gaps = (left ^ move_2) | (move_2 >> 2), gaps & (odd ^ 0xFFFFFFFF)
    odd = odd_below(gaps)
    move_4 = odd & left
    left, gaps = (left ^ move_4) | (move_4 >> 4), gaps & (odd ^ 0xFFFFFFFF)
    odd = odd_below(gaps)
    move_8 = odd & left
    left, gaps = (left ^ move_8) | (move_8 >> 8), gaps & (odd ^ 0xFFFFFFFF)
    move_16 = odd_below(gaps) & left
    bits = (bits & (move_16 ^ 0xFFFFFFFF)) | ((bits << 16) & move_16)
    bits = (bits & (move_8 ^ 0xFFFFFFFF)) | ((bits << 8) & move_8)
    bits = (bits & (move_4 ^ 0xFFFFFFFF)) | ((bits << 4) & move_4)
    bits = (bits & (move_2 ^ 0xFFFFFFFF)) | ((bits << 2) & move_2)
    bits = (bits & (move_1 ^ 0xFFFFFFFF)) | ((bits << 1) & move_1)
    return bits & mask


@triton.jit
def pack_allowed(user, allowed_BC, classes_BK, CLASSES: tl.constexpr, SIZE: tl.constexpr):
    """A request's allowed classes as bits: a gather among a thousand of them then reads one line. All its CTAs write the same."""
    CHUNK: tl.constexpr = min(SIZE, 32)
    lane = tl.arange(0, _WORD)[None, :]
    for start in range(0, SIZE, CHUNK):
        word = start + tl.arange(0, CHUNK)
        kind = word[:, None] * _WORD + lane
        allowed = tl.load(allowed_BC + user * CLASSES + kind, mask=kind < CLASSES, other=0) != 0
        tl.store(classes_BK + user * SIZE + word, tl.sum(allowed.to(tl.int32) << lane, 1))
    tl.debug_barrier()


@triton.jit
def list_allowed(begin, end, class_P, classes_K, listed_L, LISTED: tl.constexpr, PAIRS: tl.constexpr):
    """A bit for each of the neighboring pairs from `begin` to `end`, whether its class is allowed, PAIRS at a time."""
    lane = tl.arange(0, _WORD)[:, None]  # neighboring threads have neighboring pairs
    group = tl.arange(0, PAIRS // _WORD)
    for start in range(0, end - begin, PAIRS):
        pair = begin + start + group[None, :] * _WORD + lane
        kind = tl.load(class_P + pair, mask=pair < end, other=0)
        allowed = tl.load(classes_K + (kind >> 5))
        place = start // _WORD + group
        tl.store(listed_L + place, tl.sum(((allowed >> (kind & 31)) & 1) << lane, 0), mask=place < LISTED)
    tl.debug_barrier()


@triton.jit
def spread_listed(code, begin, word, bits_VW, ranks_VW, listed_L, WORDS: tl.constexpr):
    """Words of a row's mask: each word of the pair table spreads its share of the listed bits to the places of its own."""
    bits = tl.load(bits_VW + code * WORDS + word, mask=word < WORDS, other=0).to(tl.uint32, bitcast=True)
    before = tl.load(ranks_VW + code * WORDS + word, mask=word < WORDS, other=0) - begin
    low = tl.load(listed_L + (before >> 5), mask=bits != 0, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(listed_L + (before >> 5) + 1, mask=bits != 0, other=0).to(tl.uint64)
    own = (((high << 32) | low) >> (before & 31).to(tl.uint64)).to(tl.uint32)
    return spread(own, bits).to(tl.int32, bitcast=True)


@triton.jit
def items_rules_2(
    first_N, bits_VW, ranks_VW, class_P, limits_B3, allowed_BC, classes_BK, listed_NL, mask_NM,
    ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr, CLASSES_SIZE: tl.constexpr, MASK_WORDS: tl.constexpr,
    COUNT: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The mask of COUNT rows of a request that restricts categories, CHUNK words at a time; of another request nothing.

    A row that is no beam is left out: nobody reads its mask.
    """
    LISTED: tl.constexpr = MASK_WORDS + 1  # a word more, which is read with the last
    user = tl.program_id(1).to(tl.int64)
    if tl.load(limits_B3 + user * 3 + _RESTRICTED) != 0:
        pack_allowed(user, allowed_BC, classes_BK, CLASSES, CLASSES_SIZE)
        first = tl.program_id(0) * COUNT
        for place in range(first, tl.minimum(first + COUNT, ROWS)):
            row = user * ROWS + place
            code = tl.load(first_N + row)
            if code >= 0:
                last = code * WORDS + WORDS - 1
                begin = tl.load(ranks_VW + code * WORDS)
                end = tl.load(ranks_VW + last) + ones_in(tl.load(bits_VW + last).to(tl.uint32, bitcast=True))
                listed_L = listed_NL + row * LISTED
                list_allowed(begin, end, class_P, classes_BK + user * CLASSES_SIZE, listed_L, LISTED, PAIRS)
                for start in range(0, MASK_WORDS, CHUNK):
                    word = tl.max_contiguous(start + tl.arange(0, CHUNK), 1)  # a word of each thread, not four
                    kept = spread_listed(code, begin, word, bits_VW, ranks_VW, listed_L, WORDS)
                    tl.store(mask_NM + row * MASK_WORDS + word, kept, mask=word < MASK_WORDS)


@triton.jit
def items_partials_2(
    logits_NV, first_N, bits_VW, limits_B3, mask_NM, place_N, largest_NT, valid_NT, sum_NT,
    V: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT tiles of one row, so that its code and where its bits lie are scalars; a thread holds every fourth unit of a tile."""
    PARTS: tl.constexpr = (TILES + COUNT - 1) // COUNT
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    first = tl.program_id(0) % PARTS * COUNT
    code = tl.load(first_N + row)
    restricted = tl.load(limits_B3 + row // ROWS * 3 + _RESTRICTED) != 0
    tile = first + tl.arange(0, COUNT)[None, :, None, None]
    unit = tile * _UNITS + tl.arange(0, _EACH)[None, None, :, None] * _LANES + tl.arange(0, _LANES)[:, None, None, None]
    lane = tl.arange(0, _UNIT)[None, None, None, :]
    inside = tile < TILES
    x = tl.load(logits_NV + row * V + unit * _UNIT + lane, mask=inside & (unit * _UNIT + lane < V), other=float("-inf"))
    source = tl.where(restricted, mask_NM + row * (TILES * _WORDS), bits_VW + code * WORDS)
    # Bytes one by one: four at a time would lie in other threads than their logits.
    place = tl.max_contiguous(unit, (1, 1, 1, 1))
    there = inside & (code >= 0) & (unit * _UNIT < WORDS * _WORD)
    byte = tl.load(source.to(tl.pointer_type(tl.int8)) + place, mask=there, other=0).to(tl.int32)
    x = x.to(tl.float32)
    largest = most(x)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # a tile of -inf alone adds 0 to its row's sum
    total = tl.sum(tl.sum(tl.sum(exp2((x - base[None, :, None, None]) * _LOG2E), 3), 2), 0)
    best = most(tl.where(((byte >> lane) & 1) != 0, x, float("nan")))  # a maximum leaves NaN out
    within = first + tl.arange(0, COUNT)
    number = row * TILES + within
    tl.store(largest_NT + number, largest.to(tl.float16), mask=within < TILES)
    tl.store(sum_NT + number, total, mask=within < TILES)
    tl.store(valid_NT + number, as_signed(key_of(best, most(byte & 0xFF) != 0)), mask=within < TILES)
    tl.store(place_N + row, source.to(tl.int64))


@triton.jit
def most(x):
    """The largest of each tile of [lanes, tiles, units, logits]."""
    return tl.max(tl.max(tl.max(x, 3), 2), 0)
