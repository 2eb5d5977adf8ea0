"""Exact selection inside a CTA: FP32 values as integer keys, and the largest of them, equal ones to the smaller position."""

from __future__ import annotations

import triton
import triton.language as tl

MAX_KEYS = 32768  # of one selection: 32 registers for each of 1024 threads; a count of equal keys fits 16 bits
_ABSENT = tl.constexpr(0)
_NAN = tl.constexpr(1)


@triton.jit
def key_of(value, present):
    """UINT32 in the order of FP32 values: -0 equals 0, NaN comes after -inf, and what is not `present` after NaN."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(value == value, key, _NAN)
    return tl.where(present, key, _ABSENT)


@triton.jit
def value_of(key):
    """The FP32 value of a key; the bits that belong to the key of NaN are a NaN's."""
    bits = tl.where((key >> 31) != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_word(key):
    """A key as memory holds it."""
    return key.to(tl.int32, bitcast=True)


@triton.jit
def as_key(word):
    """A key from memory."""
    return word.to(tl.uint32, bitcast=True)


@triton.jit
def as_signed(key):
    """A key as memory holds it where atomics compare: INT32 in the order of keys."""
    return (key ^ 0x80000000).to(tl.int32, bitcast=True)


@triton.jit
def from_signed(word):
    """A key from such memory."""
    return word.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def selected(key_N, KEEP: tl.constexpr, FEWER: tl.constexpr):
    """Which of the keys are the KEEP largest, equal ones to the smaller position, and the place of each in the order of positions.

    At least KEEP keys are present, unless FEWER may be: then they are all taken, and absent ones with them. Otherwise at least KEEP keys
    are `low` or larger, `enough` of them, and fewer than KEEP `high` or larger. A step cuts the integers between them in four, by three
    counts that are one sum over the CTA, while the keys stay in registers. It ends early where exactly KEEP are left.
    """
    present = (key_N != _ABSENT).to(tl.int32)
    enough = tl.sum(present, 0)
    low = tl.min(tl.where(present != 0, key_N, 0xFFFFFFFF), 0)
    high = tl.max(key_N, 0) + 1
    if FEWER:
        low = tl.where(enough >= KEEP, low, _ABSENT)
        high = tl.where(enough >= KEEP, high, _ABSENT + 1)
    while (enough != KEEP) & (high - low > 1):
        quarter = tl.maximum((high - low) // 4, 1)
        first = low + quarter
        second = first + quarter
        third = second + quarter
        counts = (key_N >= first).to(tl.int64) + ((key_N >= second).to(tl.int64) << 20) + ((key_N >= third).to(tl.int64) << 40)
        counts = tl.sum(counts, 0)
        of_first = (counts & 0xFFFFF).to(tl.int32)
        of_second = ((counts >> 20) & 0xFFFFF).to(tl.int32)
        of_third = (counts >> 40).to(tl.int32)
        high = tl.where(of_third >= KEEP, high, tl.minimum(third, high))
        high = tl.where(of_second >= KEEP, high, tl.minimum(second, high))
        high = tl.where(of_first >= KEEP, high, tl.minimum(first, high))
        low = tl.where(of_first >= KEEP, first, low)
        enough = tl.where(of_first >= KEEP, of_first, enough)
        low = tl.where(of_second >= KEEP, second, low)
        enough = tl.where(of_second >= KEEP, of_second, enough)
        low = tl.where(of_third >= KEEP, third, low)
        enough = tl.where(of_third >= KEEP, of_third, enough)
    larger = (key_N > low).to(tl.int32)
    equal = (key_N == low).to(tl.int32)
    spare = KEEP - tl.sum(larger, 0)
    counts = tl.cumsum((larger << 16) | equal, 0)  # two prefix sums in one: fewer than 2^15 are larger, fewer than 2^16 equal
    ties = counts & 0xFFFF
    take = (larger != 0) | ((equal != 0) & (ties <= spare))
    return take, (counts >> 16) + tl.minimum(ties, spare) - 1
