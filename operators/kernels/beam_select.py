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

    At least KEEP keys are present, unless FEWER may be: then absent ones are taken, too. Bisection over the integers: at least KEEP
    keys are `low` or larger, fewer than KEEP `high` or larger. It ends early where exactly KEEP are. The keys stay in registers, and
    a step is one sum over the CTA.
    """
    low = tl.full((), 0 if FEWER else 1, tl.uint32)
    high = tl.max(key_N, 0) + 1
    enough = tl.sum((key_N >= low).to(tl.int32), 0)
    while (enough != KEEP) & (high - low > 1):
        middle = low + (high - low) // 2
        count = tl.sum((key_N >= middle).to(tl.int32), 0)
        reached = count >= KEEP
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
        enough = tl.where(reached, count, enough)
    larger = (key_N > low).to(tl.int32)
    equal = (key_N == low).to(tl.int32)
    spare = KEEP - tl.sum(larger, 0)
    counts = tl.cumsum((larger << 16) | equal, 0)  # two prefix sums in one: fewer than 2^15 are larger, fewer than 2^16 equal
    ties = counts & 0xFFFF
    take = (larger != 0) | ((equal != 0) & (ties <= spare))
    return take, (counts >> 16) + tl.minimum(ties, spare) - 1
