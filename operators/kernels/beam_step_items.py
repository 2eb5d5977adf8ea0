"""BeamStepItems1, 2, 3 on the GPU: a mask of the codes that continue each beam, made in the pass over the logits, and the kernels of
BeamStep, which heed it.

partials: as of BeamStep; of every row a bit for each code, from the level of the index and the request's rules; and of every tile the
          largest logit that is a candidate. A third token has few candidates: CTAs of their own look at them one by one.
The other launches are those of BeamStep (beam_step.py). Atomics set bits and raise maxima: their order changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...core.errors import BuildError
from ...runtime.item_index import CODE_BITS, WORD, words_of
from ..item_mask import BEAMS, EXCLUDED, RESTRICTED
from ..launch.compile import Build
from ..launch.node import Node, expect, static
from ..launch.program import Argument, Buffer, Input, Int32, Launch, Program, Scratch, cdiv, dim
from .beam_kernels import TILE, UNIT, store_partials
from .beam_select import as_signed, key_of
from .beam_step import BeamShape, BeamTile, Mask, buffers_of, checked_program, numbered, selection, shape_of

_TILE, _UNIT, _UNITS = tl.constexpr(TILE), tl.constexpr(UNIT), tl.constexpr(TILE // UNIT)
_WORD, _CODE_BITS, _CODE = tl.constexpr(WORD), tl.constexpr(CODE_BITS), tl.constexpr((1 << CODE_BITS) - 1)
_WORDS, _NO_KEY = tl.constexpr(TILE // WORD), tl.constexpr(-(1 << 31))
_EXCLUDED, _RESTRICTED = tl.constexpr(EXCLUDED), tl.constexpr(RESTRICTED)
assert BEAMS == 0  # beam_finish reads it


@triton.jit
def ones_in(word):
    """Set bits of a UINT32, added up in fields of 2, 4 and 8 bits."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def store_candidates(first, x, byte, mask_NM, valid_NT, tiles, COUNT: tl.constexpr):
    """The mask of COUNT tiles, a byte for each unit, and the key of the largest candidate of each; `x` are their logits."""
    number = first + tl.arange(0, COUNT)
    inside = number < tiles
    unit = tl.arange(0, _UNITS)[None, :]
    lane = tl.arange(0, _UNIT)[None, None, :]
    candidate = tl.reshape(((byte[:, :, None] >> lane) & 1) != 0, (COUNT, _TILE))
    best = tl.max(tl.where(candidate, x, float("nan")), 1)  # a maximum leaves NaN out
    tl.store(mask_NM + number[:, None] * _UNITS + unit, byte.to(tl.int8), mask=inside[:, None])
    tl.store(valid_NT + number, as_signed(key_of(best, tl.max(byte, 1) != 0)), mask=inside)


@triton.jit
def items_partials_1(
    logits_NV, class_V, limits_B3, allowed_BC, mask_NM, largest_NT, valid_NT, sum_NT, tiles,
    V: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT neighboring tiles of all `tiles`."""
    first = tl.program_id(0).to(tl.int64) * COUNT
    x = store_partials(first, logits_NV, largest_NT, sum_NT, tiles, V, TILES, COUNT)
    number = first + tl.arange(0, COUNT)
    inside = number < tiles
    user = number // (TILES * ROWS)
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED, mask=inside, other=0)
    place = tl.arange(0, _UNITS)[:, None] * _UNIT + tl.arange(0, _UNIT)[None, :]
    code = (number % TILES).to(tl.int32)[:, None, None] * _TILE + place[None, :, :]
    kind = tl.load(class_V + code, mask=inside[:, None, None] & (code < V), other=-1)
    asked = (kind >= 0) & (restricted[:, None, None] != 0)
    listed = tl.load(allowed_BC + user[:, None, None] * CLASSES + kind, mask=asked, other=1)
    bit = ((kind >= 0) & (listed != 0)).to(tl.int32)
    byte = tl.sum(bit << tl.arange(0, _UNIT)[None, None, :], 2)
    store_candidates(first, x, byte, mask_NM, valid_NT, tiles, COUNT)


@triton.jit
def items_partials_2(
    logits_NV, first_N, bits_VW, ranks_VW, class_P, limits_B3, allowed_BC, mask_NM, largest_NT, valid_NT, sum_NT, tiles,
    V: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT neighboring tiles of all `tiles`, whose bits stand in the pair table.

    Only where a request restricts categories is each pair looked up.
    """
    first = tl.program_id(0).to(tl.int64) * COUNT
    number = first + tl.arange(0, COUNT)
    inside = number < tiles
    row = number // TILES
    user = row // ROWS
    code = tl.load(first_N + row, mask=inside, other=-1)
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED, mask=inside, other=0)
    word = (number % TILES).to(tl.int32)[:, None] * _WORDS + tl.arange(0, _WORDS)[None, :]
    there = (code >= 0)[:, None] & (word < WORDS)
    place = code[:, None] * WORDS + word
    some = tl.load(bits_VW + place, mask=there, other=0)
    x = store_partials(first, logits_NV, largest_NT, sum_NT, tiles, V, TILES, COUNT)
    if tl.max(restricted, 0) != 0:
        rank = tl.load(ranks_VW + place, mask=there, other=0)
        lane = tl.arange(0, _WORD)[None, None, :]
        bit = (some[:, :, None] >> lane) & 1
        pair = rank[:, :, None] + tl.cumsum(bit, 2) - bit
        kind = tl.load(class_P + pair, mask=bit != 0, other=0)
        asked = (bit != 0) & (restricted != 0)[:, None, None]
        listed = tl.load(allowed_BC + user[:, None, None] * CLASSES + kind, mask=asked, other=1)
        some = tl.sum(((bit != 0) & (listed != 0)).to(tl.int32) << lane, 2)
    byte = (some[:, :, None] >> (tl.arange(0, _WORD // _UNIT)[None, None, :] * _UNIT)) & 0xFF
    store_candidates(first, x, tl.reshape(byte, (COUNT, _UNITS)), mask_NM, valid_NT, tiles, COUNT)


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
def mark_entries(
    number, logits_NV, first_N, second_N, bits_VW, ranks_VW, rows_P, entries_S, limits_B3, allowed_BC, excluded_BE, mask_NM, valid_NT, rows,
    V: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr, EXCLUDED: tl.constexpr, STEPS: tl.constexpr,
    TILES: tl.constexpr, TILES_SIZE: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    """COUNT rows. Their entries set bits and raise the largest candidate of their tiles, CHUNK of each row at a time."""
    MASK_WORDS: tl.constexpr = TILES * _TILE // _WORD
    row = number * COUNT + tl.arange(0, COUNT)
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
def items_partials_3(
    logits_NV, first_N, second_N, bits_VW, ranks_VW, rows_P, entries_S, limits_B3, allowed_BC, excluded_BE,
    mask_NM, largest_NT, valid_NT, sum_NT, tiles, rows,
    V: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, CLASSES: tl.constexpr,
    EXCLUDED: tl.constexpr, STEPS: tl.constexpr, TILES_SIZE: tl.constexpr, MARKED: tl.constexpr, CHUNK: tl.constexpr,
    CLEAR: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The first CTAs mark entries, of MARKED rows each, while the others read the logits: COUNT neighboring tiles of all `tiles`."""
    marking = tl.cdiv(rows, MARKED)
    number = tl.program_id(0)
    if number < marking:
        mark_entries(
            number, logits_NV, first_N, second_N, bits_VW, ranks_VW, rows_P, entries_S, limits_B3, allowed_BC, excluded_BE,
            mask_NM, valid_NT, rows, V, ROWS, WORDS, CLASSES, EXCLUDED, STEPS, TILES, TILES_SIZE, MARKED, CHUNK, CLEAR,
        )  # fmt: skip
    else:
        store_partials((number - marking).to(tl.int64) * COUNT, logits_NV, largest_NT, sum_NT, tiles, V, TILES, COUNT)


MARKED_ROWS, MARKED_CHUNK, MARKED_CLEAR = 32, 8, 128  # of a CTA that marks entries
LIMITS = {1: 3, 2: 6, 3: 8}  # place of the requests' limits among the inputs


def beam_step_items_program(node: Node, tile: BeamTile | None = None) -> Program | None:
    """BeamStepItems1, 2 or 3, whose inputs operators/beam_step_items.py lists; None where BeamStep has no kernel."""
    shape, tile = shape_of(node), tile or BeamTile()
    if not shape.has_kernel:
        return None
    level = int(node.operator[-1])
    _check_inputs(node, level)
    rows = dim(0, 0)
    buffers = {
        **buffers_of(shape),
        "mask": Buffer(rows * (shape.tiles * TILE // UNIT)),
        "valid": Buffer(rows * (shape.tiles * 4)),
    }
    scratch = numbered(buffers)
    mask = Mask(scratch["mask"], scratch["valid"], Input(LIMITS[level]))
    partials = _partials(node, level, shape, tile, scratch)
    return checked_program(node, shape, buffers, (partials, *selection(node, shape, tile, scratch, mask)))


def _check_inputs(node: Node, level: int) -> None:
    """Codes are INT64, everything of the index and the rules INT32."""
    count = {1: 5, 2: 8, 3: 11}[level]
    if len(node.inputs) != count:
        raise BuildError(f"it has {len(node.inputs)} inputs, needs {count}", where=node.operator, hint="correct the graph")
    for place in range(2, count):
        expect(node, place, "int64" if place < 1 + level else "int32")
    if level > 1 and static(node, 1 + level, 1) != words_of(static(node, 1 + level, 0)):
        raise BuildError("the pair table has not a bit for each pair", where=node.operator, hint="correct the graph")


def _partials(node: Node, level: int, shape: BeamShape, tile: BeamTile, scratch: dict[str, Scratch]) -> Launch:
    """The pass over the logits, and what the index and the rules make of them."""
    given = {
        1: tuple(("*i32", place) for place in range(2, 5)),
        2: (("*i64", 2), *(("*i32", place) for place in range(3, 8))),
        3: (("*i64", 2), ("*i64", 3), *(("*i32", place) for place in range(4, 11))),
    }[level]
    made = ("*i32" if level == 3 else "*i8", "*fp16", "*i32", "*fp32")
    rows, tiles = dim(0, 0), dim(0, 0) * shape.tiles
    types = ("*fp16", *(kind for kind, _ in given), *made, "i32", *(("i32",) if level == 3 else ()))
    constants = {"V": shape.vocabulary, "TILES": shape.tiles, "ROWS": shape.rows, "COUNT": tile.partials}
    constants["CLASSES"] = static(node, LIMITS[level] + 1, 1)
    if level > 1:
        constants["WORDS"] = static(node, 1 + level, 1)
    ctas = cdiv(tiles, tile.partials)
    if level == 3:
        constants |= _marking(shape, static(node, 10, 1))
        ctas = ctas + cdiv(rows, MARKED_ROWS)
    kernel = node.compile(Build(__name__, f"items_partials_{level}", types, constants, node.capability, tile.partials_warps))
    results = (scratch[name] for name in ("mask", "largest", "valid", "sum"))
    counts = (Int32(tiles), Int32(rows)) if level == 3 else (Int32(tiles),)
    arguments: tuple[Argument, ...] = (Input(0), *(Input(place) for _, place in given), *results, *counts)
    return Launch(kernel, (ctas, 1, 1), arguments)


def _marking(shape: BeamShape, excluded: int) -> dict[str, int]:
    """Constants of the CTAs that mark entries."""
    return {
        "EXCLUDED": excluded,
        "STEPS": excluded.bit_length(),
        "TILES_SIZE": triton.next_power_of_2(shape.tiles),
        "MARKED": MARKED_ROWS,
        "CHUNK": MARKED_CHUNK,
        "CLEAR": MARKED_CLEAR,
    }
