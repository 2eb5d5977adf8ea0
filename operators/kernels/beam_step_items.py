"""BeamStepItems1, 2, 3 on the GPU: a mask of the codes that continue each beam, then the kernels of BeamStep, which heed it.

mask:     of every row a bit for each code, from the level of the index and the request's rules.
partials: as of BeamStep, and of every tile the largest logit that is a candidate; for the third token the mask's launch finds it.
The other launches are those of BeamStep (beam_step.py). Atomics set bits and raise maxima: their order changes nothing.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ...core.errors import BuildError
from ...runtime.item_index import CODE_BITS, WORD, words_of
from ..beam_step_items import LEVEL_OF
from ..item_mask import BEAMS, EXCLUDED, RESTRICTED
from ..launch.compile import Build
from ..launch.node import Node, expect, static
from ..launch.program import Argument, Buffer, Input, Int32, Launch, Program, Scratch, cdiv, dim
from .attention import exp2
from .beam_kernels import TILE, UNIT
from .beam_select import as_signed, key_of
from .beam_step import BeamShape, BeamTile, Mask, Partials, buffers_of, checked_program, numbered, open_partials, selection, shape_of

_TILE, _UNIT, _UNITS = tl.constexpr(TILE), tl.constexpr(UNIT), tl.constexpr(TILE // UNIT)
_WORD, _CODE_BITS, _CODE = tl.constexpr(WORD), tl.constexpr(CODE_BITS), tl.constexpr((1 << CODE_BITS) - 1)
_WORDS, _LOG2E, _NO_KEY = tl.constexpr(TILE // WORD), tl.constexpr(math.log2(math.e)), tl.constexpr(-(1 << 31))
_EXCLUDED, _RESTRICTED = tl.constexpr(EXCLUDED), tl.constexpr(RESTRICTED)
assert BEAMS == 0  # beam_finish reads it


@triton.jit
def ones_in(word):
    """Set bits of a UINT32, added up in fields of 2, 4 and 8 bits."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def items_mask_1(
    class_V, limits_B3, allowed_BC, mask_NM,
    V: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, MASK_WORDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row: CHUNK words at a time."""
    row = tl.program_id(0).to(tl.int64)
    user = row // ROWS
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED)
    lane = tl.arange(0, _WORD)[None, :]
    for first in range(0, MASK_WORDS, CHUNK):
        word = first + tl.arange(0, CHUNK)
        code = word[:, None] * _WORD + lane
        number = tl.load(class_V + code, mask=code < V, other=-1)
        asked = (number >= 0) & (restricted != 0)
        listed = tl.load(allowed_BC + user * CLASSES + number, mask=asked, other=1)
        bit = (number >= 0) & (listed != 0)
        tl.store(mask_NM + row * MASK_WORDS + word, tl.sum(bit.to(tl.int32) << lane, 1), mask=word < MASK_WORDS)


@triton.jit
def items_mask_2(
    first_N, bits_VW, ranks_VW, class_P, limits_B3, allowed_BC, mask_NM,
    ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr, MASK_WORDS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row, whose bits stand in the pair table. Only where the request restricts categories is each pair looked up."""
    row = tl.program_id(0).to(tl.int64)
    user = row // ROWS
    code = tl.load(first_N + row)
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED)
    if restricted == 0:
        word = tl.arange(0, SIZE)
        bits = tl.load(bits_VW + code * WORDS + word, mask=(word < WORDS) & (code >= 0), other=0)
        tl.store(mask_NM + row * MASK_WORDS + word, bits, mask=word < MASK_WORDS)
    else:
        lane = tl.arange(0, _WORD)[None, :]
        for begin in range(0, MASK_WORDS, CHUNK):
            place = begin + tl.arange(0, CHUNK)
            there = (place < WORDS) & (code >= 0)
            some = tl.load(bits_VW + code * WORDS + place, mask=there, other=0)
            rank = tl.load(ranks_VW + code * WORDS + place, mask=there, other=0)
            bit = (some[:, None] >> lane) & 1
            pair = rank[:, None] + tl.cumsum(bit, 1) - bit
            number = tl.load(class_P + pair, mask=bit != 0, other=0)
            listed = tl.load(allowed_BC + user * CLASSES + number, mask=bit != 0, other=0)
            tl.store(mask_NM + row * MASK_WORDS + place, tl.sum((listed != 0).to(tl.int32) << lane, 1), mask=place < MASK_WORDS)


@triton.jit
def is_excluded(entry, user, count, excluded_BE, EXCLUDED: tl.constexpr, STEPS: tl.constexpr):
    """Whether entries stand among the first `count` of their requests' excluded ones, which are ascending."""
    low = tl.zeros_like(entry)
    high = low + count
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        other = tl.load(excluded_BE + user * EXCLUDED + middle, mask=open_, other=0)
        low = tl.where(open_ & (other < entry), middle + 1, low)
        high = tl.where(open_ & (other >= entry), middle, high)
    found = tl.load(excluded_BE + user * EXCLUDED + low, mask=low < count, other=-1)
    return found == entry


@triton.jit
def items_mask_3(
    logits_NV, first_N, second_N, bits_VW, ranks_VW, rows_P, entries_S, limits_B3, allowed_BC, excluded_BE, mask_NM, valid_NT, rows,
    V: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr, EXCLUDED: tl.constexpr, STEPS: tl.constexpr,
    TILES: tl.constexpr, TILES_SIZE: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    """COUNT rows. Their entries set bits and raise the largest candidate of their tiles, CHUNK of each row at a time."""
    MASK_WORDS: tl.constexpr = TILES * _TILE // _WORD
    row = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    inside = row < rows
    user = (row // ROWS).to(tl.int64)
    first = tl.load(first_N + row, mask=inside, other=-1)
    second = tl.load(second_N + row, mask=inside, other=-1)
    alive = (first >= 0) & (second >= 0)
    place = first * WORDS + second // _WORD
    bits = tl.load(bits_VW + place, mask=alive, other=0).to(tl.uint32, bitcast=True)
    rank = tl.load(ranks_VW + place, mask=alive, other=0)
    mark = tl.full((COUNT,), 1, tl.uint32) << (second % _WORD).to(tl.uint32)
    known = alive & ((bits & mark) != 0)
    pair = rank + ones_in(bits & (mark - 1))
    begin = tl.load(rows_P + pair, mask=known, other=0)
    end = tl.load(rows_P + pair + 1, mask=known, other=0)
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED, mask=inside, other=0)[:, None]
    count = tl.load(limits_B3 + user * 3 + _EXCLUDED, mask=inside, other=0)
    base = row.to(tl.int64)[:, None]
    for start in range(0, MASK_WORDS, CLEAR):
        word = start + tl.arange(0, CLEAR)[None, :]
        tl.store(mask_NM + base * MASK_WORDS + word, tl.zeros((COUNT, CLEAR), tl.int32), mask=inside[:, None] & (word < MASK_WORDS))
    tile = tl.arange(0, TILES_SIZE)[None, :]
    nothing = tl.full((COUNT, TILES_SIZE), _NO_KEY, tl.int32)
    tl.store(valid_NT + base * TILES + tile, nothing, mask=inside[:, None] & (tile < TILES))
    tl.debug_barrier()
    longest = tl.max(end - begin, 0)
    most = tl.max(count, 0)
    for start in range(0, longest, CHUNK):
        entry = begin[:, None] + start + tl.arange(0, CHUNK)[None, :]
        there = entry < end[:, None]
        content = tl.load(entries_S + entry, mask=there, other=0)
        asked = there & (restricted != 0)
        listed = tl.load(allowed_BC + user[:, None] * CLASSES + (content >> _CODE_BITS), mask=asked, other=1)
        kept = there & (listed != 0)
        if most > 0:
            kept = kept & (is_excluded(entry, user[:, None], count[:, None], excluded_BE, EXCLUDED, STEPS) == 0)
        code = content & _CODE
        logit = tl.load(logits_NV + base * V + code, mask=kept, other=0.0).to(tl.float32)
        one = tl.full((COUNT, CHUNK), 1, tl.int32)
        tl.atomic_or(mask_NM + base * MASK_WORDS + code // _WORD, one << (code % _WORD), mask=kept, sem="relaxed")
        tl.atomic_max(valid_NT + base * TILES + code // _TILE, as_signed(key_of(logit, kept)), mask=kept, sem="relaxed")


@triton.jit
def items_partials(
    logits_NV, mask_NM, word_NM, largest_NT, valid_NT, sum_NT, tiles, V: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT neighboring tiles of all `tiles`, as beam_partials, and the key of the largest candidate of each.

    `word_NM` is `mask_NM`, four bytes at a time. The logits are asked for first: the mask arrives while they are on their way.
    """
    first = tl.program_id(0).to(tl.int64) * COUNT
    number = tl.arange(0, COUNT)
    within = (first % TILES).to(tl.int32) + number
    row = within // TILES
    column = ((within % TILES) * _TILE)[:, None] + tl.arange(0, _TILE)[None, :]
    inside = first + number < tiles
    mask = inside[:, None]
    if TILES * _TILE != V:
        mask = mask & (column < V)
    half = tl.load(logits_NV + first // TILES * V + (row * V)[:, None] + column, mask=mask, other=float("-inf"))
    unit = tl.arange(0, _UNITS)[None, :]
    byte = tl.load(mask_NM + (first + number)[:, None] * _UNITS + unit, mask=inside[:, None], other=0).to(tl.int32)
    words = word_NM + (first + number) * _WORDS
    some = tl.load(words, mask=inside, other=0)
    for place in tl.static_range(1, _WORDS):
        some = some | tl.load(words + place, mask=inside, other=0)
    x = half.to(tl.float32)
    largest = tl.max(x, 1)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # a tile of -inf alone adds 0 to its row's sum
    total = tl.sum(exp2((x - base[:, None]) * _LOG2E), 1)
    lane = tl.arange(0, _UNIT)[None, None, :]
    candidate = tl.reshape(((byte[:, :, None] >> lane) & 1) != 0, (COUNT, _TILE))
    best = tl.max(tl.where(candidate, x, float("nan")), 1)  # a maximum leaves NaN out
    tl.store(largest_NT + first + number, largest.to(tl.float16), mask=inside)
    tl.store(valid_NT + first + number, as_signed(key_of(best, some != 0)), mask=inside)
    tl.store(sum_NT + first + number, total, mask=inside)


FIRST_CHUNK, FIRST_WARPS = 256, 8
SECOND_CHUNK, SECOND_WARPS = 16, 1
THIRD_ROWS, THIRD_CHUNK, THIRD_CLEAR, THIRD_WARPS = 8, 8, 128, 1
LIMITS = {1: 3, 2: 6, 3: 8}  # place of the requests' limits among the inputs


def beam_step_items_program(node: Node, tile: BeamTile | None = None) -> Program | None:
    """BeamStepItems1, 2 or 3, whose inputs operators/beam_step_items.py lists; None where BeamStep has no kernel."""
    shape, tile = shape_of(node), tile or BeamTile()
    if not shape.has_kernel:
        return None
    level = LEVEL_OF[node.operator]
    _check_inputs(node, level)
    rows = dim(0, 0)
    buffers = {
        **buffers_of(shape),
        "mask": Buffer(rows * (shape.tiles * TILE // UNIT)),
        "valid": Buffer(rows * (shape.tiles * 4)),
    }
    scratch = numbered(buffers)
    mask = Mask(scratch["mask"], scratch["valid"], Input(LIMITS[level]))
    launches = (
        (_first, _second, _third)[level - 1](node, shape, mask),
        (open_partials(scratch) if level == 3 else _partials(scratch)).launch(node, shape, tile),
        *selection(node, shape, tile, scratch, mask),
    )
    return checked_program(node, shape, buffers, launches)


def _partials(scratch: dict[str, Scratch]) -> Partials:
    """Of levels 1 and 2, where many codes are candidates. The third token has few: items_mask_3 looks at them one by one."""
    given = (("*fp16", Input(0)), ("*i8", scratch["mask"]), ("*i32", scratch["mask"]))
    made = (("*fp16", scratch["largest"]), ("*i32", scratch["valid"]), ("*fp32", scratch["sum"]))
    return Partials(__name__, "items_partials", given, made)


def _check_inputs(node: Node, level: int) -> None:
    """Codes are INT64, everything of the index and the rules INT32."""
    count = {1: 5, 2: 8, 3: 11}[level]
    if len(node.inputs) != count:
        raise BuildError(f"it has {len(node.inputs)} inputs, needs {count}", where=node.operator, hint="correct the graph")
    for place in range(2, count):
        expect(node, place, "int64" if place < 1 + level else "int32")
    if level > 1 and static(node, 1 + level, 1) != words_of(static(node, 1 + level, 0)):
        raise BuildError("the pair table has not a bit for each pair", where=node.operator, hint="correct the graph")


def _common(node: Node, shape: BeamShape, allowed: int) -> dict[str, int]:
    return {"ROWS": shape.rows, "CLASSES": static(node, allowed, 1), "MASK_WORDS": shape.tiles * (TILE // WORD)}


def _first(node: Node, shape: BeamShape, mask: Mask) -> Launch:
    common = _common(node, shape, 4)
    chunk = min(FIRST_CHUNK, triton.next_power_of_2(common["MASK_WORDS"]))
    constants = {**common, "V": shape.vocabulary, "CHUNK": chunk}
    kernel = node.compile(Build(__name__, "items_mask_1", ("*i32",) * 4, constants, node.capability, FIRST_WARPS))
    return Launch(kernel, (dim(0, 0), 1, 1), (Input(2), Input(3), Input(4), mask.bits))


def _second(node: Node, shape: BeamShape, mask: Mask) -> Launch:
    common = _common(node, shape, 7)
    size = triton.next_power_of_2(common["MASK_WORDS"])
    constants = {**common, "WORDS": static(node, 3, 1), "SIZE": size, "CHUNK": min(SECOND_CHUNK, size)}
    kernel = node.compile(Build(__name__, "items_mask_2", ("*i64", *["*i32"] * 6), constants, node.capability, SECOND_WARPS))
    return Launch(kernel, (dim(0, 0), 1, 1), (*map(Input, range(2, 8)), mask.bits))


def _third(node: Node, shape: BeamShape, mask: Mask) -> Launch:
    excluded = static(node, 10, 1)
    constants = {
        "V": shape.vocabulary,
        "ROWS": shape.rows,
        "WORDS": static(node, 4, 1),
        "CLASSES": static(node, 9, 1),
        "EXCLUDED": excluded,
        "STEPS": excluded.bit_length(),
        "TILES": shape.tiles,
        "TILES_SIZE": triton.next_power_of_2(shape.tiles),
        "COUNT": THIRD_ROWS,
        "CHUNK": THIRD_CHUNK,
        "CLEAR": THIRD_CLEAR,
    }
    types = ("*fp16", "*i64", "*i64", *["*i32"] * 9, "i32")
    kernel = node.compile(Build(__name__, "items_mask_3", types, constants, node.capability, THIRD_WARPS))
    rows = dim(0, 0)
    arguments: tuple[Argument, ...] = (Input(0), *map(Input, range(2, 11)), mask.bits, mask.valid, Int32(rows))
    return Launch(kernel, (cdiv(rows, THIRD_ROWS), 1, 1), arguments)
