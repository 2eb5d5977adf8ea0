"""Numbers the entries of each expert in token order and counts them. An entry is a token and one of its slots.

Two ways. With few tokens every expert goes over all entries: one launch. With many, blocks of tokens number their entries by themselves,
and a second launch adds up how many of each expert are before a block; moe_place.py adds that to the numbers. Nothing is counted by
atomics: equal inputs give equal numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..launch.compile import Build
from ..launch.node import dependent
from ..launch.tiles import RowTile
from .dependent import await_previous

OTHERS = tl.constexpr(16)  # entries with which all of a block are compared at a time
BLOCKS = 256  # whose counts are added at a time
ADDING_WARPS = 2


@triton.jit
def moe_rank(
    index_NS, rank_NS, total_E, entries,
    EXPERTS: tl.constexpr, PORTIONS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Number the entries of one expert in token order, and count them.

    PORTIONS CTAs per expert: each counts the entries before its own, which takes less time than to number them.
    """
    if DEPENDENT:
        await_previous()
    expert = tl.program_id(0) % EXPERTS
    portion = tl.cdiv(tl.cdiv(entries, CHUNK), PORTIONS) * CHUNK
    first = tl.program_id(0) // EXPERTS * portion
    last = tl.minimum(first + portion, entries)
    earlier = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, first, CHUNK):
        entry = start + tl.arange(0, CHUNK)
        earlier += (tl.load(index_NS + entry, mask=entry < entries, other=-1) == expert).to(tl.int32)
    before = tl.sum(earlier, 0)
    for start in range(first, last, CHUNK):
        entry = start + tl.arange(0, CHUNK)
        hit = tl.load(index_NS + entry, mask=entry < last, other=-1) == expert
        up_to = tl.cumsum(hit.to(tl.int32), 0)
        tl.store(rank_NS + entry, before + up_to - 1, mask=hit)
        before += tl.sum(hit.to(tl.int32), 0)
    if tl.program_id(0) >= EXPERTS * (PORTIONS - 1):  # the last one has seen all of them
        tl.store(total_E + expert, before)


@triton.jit
def moe_number(
    index_NS, rank_NS, count_EB, rows, blocks,
    EXPERTS: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr,
    SLOT_TILE: tl.constexpr, EXPERT_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Number the entries of a block of TOKENS tokens, those of each expert in token order, and count them."""
    if DEPENDENT:
        await_previous()
    block = tl.program_id(0)
    number = tl.arange(0, TOKENS * SLOT_TILE)
    entry, exists, expert = _entries(index_NS, block * TOKENS, number, rows, EXPERTS, SLOTS, SLOT_TILE)
    experts = tl.arange(0, EXPERT_TILE)
    earlier = tl.zeros((TOKENS * SLOT_TILE, OTHERS), tl.int32)
    count = tl.zeros((EXPERT_TILE, OTHERS), tl.int32)
    for start in range(0, TOKENS * SLOT_TILE, OTHERS):  # not the whole matrix: it has no room in the registers
        other = start + tl.arange(0, OTHERS)
        _, _, others = _entries(index_NS, block * TOKENS, other, rows, EXPERTS, SLOTS, SLOT_TILE)
        earlier += ((others[None, :] == expert[:, None]) & (other[None, :] < number[:, None])).to(tl.int32)
        count += (others[None, :] == experts[:, None]).to(tl.int32)
    tl.store(rank_NS + entry, tl.sum(earlier, 1), mask=exists)
    tl.store(count_EB + experts * blocks + block, tl.sum(count, 1), mask=experts < EXPERTS)


@triton.jit
def _entries(index_NS, first, number, rows, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, SLOT_TILE: tl.constexpr):
    """Numbered from the token `first` on, with SLOT_TILE slots of each: place, whether it exists, and its expert, -1 for none."""
    token = first + number // SLOT_TILE
    exists = (token < rows) & (number % SLOT_TILE < SLOTS)
    entry = token * SLOTS + number % SLOT_TILE
    expert = tl.load(index_NS + entry, mask=exists, other=-1)
    return entry, exists, tl.where((expert >= 0) & (expert < EXPERTS), expert, -1).to(tl.int32)


@triton.jit
def moe_offset(
    count_EB, before_BE, total_E, blocks,
    EXPERT_TILE: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """How many entries of one expert stand before each block, and in all of them."""
    if DEPENDENT:
        await_previous()
    expert = tl.program_id(0)
    before = tl.zeros((), tl.int32)
    for start in range(0, blocks, CHUNK):
        block = start + tl.arange(0, CHUNK)
        count = tl.load(count_EB + expert * blocks + block, mask=block < blocks, other=0)
        tl.store(before_BE + block * EXPERT_TILE + expert, before + tl.cumsum(count, 0) - count, mask=block < blocks)
        before += tl.sum(count, 0)
    tl.store(total_E + expert, before)


def rank_build(experts: int, tile: RowTile, capability: str) -> Build:
    """How numbering by experts is compiled: `tile.rows` CTAs for each, `tile.chunk` entries at a time."""
    constants = {"EXPERTS": experts, "PORTIONS": tile.rows, "CHUNK": tile.chunk}
    return dependent(Build(__name__, "moe_rank", ("*i64", "*i32", "*i32", "i32"), constants, capability, tile.warps))


def block_builds(experts: int, slots: int, tile: RowTile, capability: str) -> tuple[Build, Build]:
    """How numbering by blocks of `tile.rows` tokens is compiled, and how their counts are added up."""
    padded = triton.next_power_of_2(experts)
    number = {"EXPERTS": experts, "SLOTS": slots, "TOKENS": tile.rows, "SLOT_TILE": triton.next_power_of_2(slots), "EXPERT_TILE": padded}
    offset = {"EXPERT_TILE": padded, "CHUNK": BLOCKS}
    return (
        dependent(Build(__name__, "moe_number", ("*i64", "*i32", "*i32", "i32", "i32"), number, capability, tile.warps)),
        dependent(Build(__name__, "moe_offset", ("*i32", "*i32", "*i32", "i32"), offset, capability, ADDING_WARPS)),
    )


def tokens_of_block(tile: RowTile) -> int:
    """Tokens of a block; 0 where entries are numbered by experts. A tile without a chunk is one of blocks."""
    return 0 if tile.chunk else tile.rows
