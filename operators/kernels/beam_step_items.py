"""BeamStepItems1, 2, 3 on the GPU: a mask of the codes that continue each beam, made in the pass over the logits, and the kernels of
BeamStep, which heed it.

partials: as of BeamStep; of every row a bit for each code, from the level of the index and the request's rules; and of every tile the
          largest logit that is a candidate. A third token has few candidates: CTAs of their own look at them one by one.
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
from ..launch.program import Buffer, Input, Int32, Kernel, Launch, Program, Scratch, cdiv, dim
from . import beam_pairs
from .attention import exp2
from .beam_kernels import TILE, UNIT, store_partials
from .beam_pairs import ones_in
from .beam_select import as_signed, key_of
from .beam_step import BeamShape, BeamTile, Mask, buffers_of, checked_program, numbered, selection, shape_of

_TILE, _UNIT, _UNITS = tl.constexpr(TILE), tl.constexpr(UNIT), tl.constexpr(TILE // UNIT)
_WORD, _CODE_BITS, _CODE = tl.constexpr(WORD), tl.constexpr(CODE_BITS), tl.constexpr((1 << CODE_BITS) - 1)
_WORDS, _LOG2E, _NO_KEY = tl.constexpr(TILE // WORD), tl.constexpr(math.log2(math.e)), tl.constexpr(-(1 << 31))
_EXCLUDED, _RESTRICTED = tl.constexpr(EXCLUDED), tl.constexpr(RESTRICTED)
assert BEAMS == 0  # beam_finish reads it


@triton.jit
def load_units(first, logits_NV, tiles, V: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr):
    """Logits [COUNT, units, 8] of the tiles from the one numbered `first` on: a lane holds units, as the mask has them."""
    number = tl.arange(0, COUNT)
    within = first % TILES + number
    unit = tl.arange(0, _UNITS)[None, :, None] * _UNIT + tl.arange(0, _UNIT)[None, None, :]
    column = (within % TILES * _TILE)[:, None, None] + unit
    inside = (first + number < tiles)[:, None, None] & (column < V)
    pointer = logits_NV + (first // TILES).to(tl.int64) * V + (within // TILES * V)[:, None, None] + column
    return tl.load(pointer, mask=inside, other=float("-inf"))


@triton.jit
def store_masked(first, x, candidate, byte, mask_NM, largest_NT, valid_NT, sum_NT, tiles, COUNT: tl.constexpr):
    """What the rows need of COUNT tiles: as store_partials, the key of the largest candidate, and the mask.

    `candidate` says which of the logits `x` are, `byte` [COUNT, units] the same in bits.
    """
    number = first + tl.arange(0, COUNT)
    inside = number < tiles
    largest = tl.max(tl.max(x, 2), 1)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # a tile of -inf alone adds 0 to its row's sum
    total = tl.sum(tl.sum(exp2((x - base[:, None, None]) * _LOG2E), 2), 1)
    best = tl.max(tl.max(tl.where(candidate, x, float("nan")), 2), 1)  # a maximum leaves NaN out
    tl.store(largest_NT + number, largest.to(tl.float16), mask=inside)
    tl.store(sum_NT + number, total, mask=inside)
    tl.store(valid_NT + number, as_signed(key_of(best, tl.max(byte, 1) != 0)), mask=inside)
    place = number.to(tl.int64)[:, None] * _UNITS + tl.arange(0, _UNITS)[None, :]
    tl.store(mask_NM + place, byte.to(tl.int8), mask=inside[:, None])


@triton.jit
def items_partials_1(
    logits_NV, class_V, limits_B3, allowed_BC, mask_NM, largest_NT, valid_NT, sum_NT, tiles,
    V: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT neighboring tiles of all `tiles`."""
    first = tl.program_id(0) * COUNT
    x = load_units(first, logits_NV, tiles, V, TILES, COUNT).to(tl.float32)
    number = first + tl.arange(0, COUNT)
    inside = number < tiles
    user = number // (TILES * ROWS)
    restricted = tl.load(limits_B3 + user * 3 + _RESTRICTED, mask=inside, other=0)[:, None, None]
    lane = tl.arange(0, _UNIT)[None, None, :]
    code = (number % TILES * _TILE)[:, None, None] + tl.arange(0, _UNITS)[None, :, None] * _UNIT + lane
    kind = tl.load(class_V + code, mask=inside[:, None, None] & (code < V), other=-1)
    listed = tl.load(allowed_BC + user[:, None, None] * CLASSES + kind, mask=(kind >= 0) & (restricted != 0), other=1)
    candidate = (kind >= 0) & (listed != 0)
    byte = tl.sum(candidate.to(tl.int32) << lane, 2)
    store_masked(first, x, candidate, byte, mask_NM, largest_NT, valid_NT, sum_NT, tiles, COUNT)


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
    TILES: tl.constexpr, TILES_SIZE: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr,
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
    tile = tl.arange(0, TILES_SIZE)[None, :]
    nothing = tl.full((COUNT, TILES_SIZE), _NO_KEY, tl.int32)
    tl.store(valid_NT + base * TILES + tile, nothing, mask=inside[:, None] & (tile < TILES))
    longest = tl.max(end - begin, 0)
    for start in range(0, longest, CHUNK):  # nobody reads the mask of a tile without an entry
        entry = begin[:, None] + start + tl.arange(0, CHUNK)[None, :]
        there = entry < end[:, None]
        code = tl.load(entries_S + entry, mask=there, other=0) & _CODE
        first_word = mask_NM + base * MASK_WORDS + code // _TILE * _WORDS
        for word in tl.static_range(_WORDS):
            tl.store(first_word + word, tl.zeros((COUNT, CHUNK), tl.int32), mask=there)
    tl.debug_barrier()
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
    COUNT: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Every SPREAD-th CTA marks entries of MARKED rows, as long as there are any; the others read COUNT neighboring tiles of all `tiles`.

    Marking waits for one look-up after the other. Among CTAs that read logits it costs no time of its own.
    """
    marking = tl.cdiv(rows, MARKED)
    number = tl.program_id(0)
    turn = number // SPREAD
    if (number % SPREAD == 0) & (turn < marking):
        mark_entries(
            turn, logits_NV, first_N, second_N, bits_VW, ranks_VW, rows_P, entries_S, limits_B3, allowed_BC, excluded_BE,
            mask_NM, valid_NT, rows, V, ROWS, WORDS, CLASSES, EXCLUDED, STEPS, TILES, TILES_SIZE, MARKED, CHUNK,
        )  # fmt: skip
    else:
        before = tl.minimum(turn + 1, marking)
        store_partials((number - before).to(tl.int64) * COUNT, logits_NV, largest_NT, sum_NT, tiles, V, TILES, COUNT)


MARKED_ROWS, MARKED_CHUNK = 32, 8  # of a CTA that marks entries
RULED_ROWS, RULED_PAIRS, RULED_WORDS, RULED_WARPS = 4, 1024, 256, 4  # of a CTA that looks pairs up
MASKED_TILE = BeamTile(pick_warps=16)  # of rows of many beams; masks are looked up one behind the other: 6 to 9 us less than with 8
LIMITS = {1: 3, 2: 6, 3: 8}  # place of the requests' limits among the inputs


def beam_step_items_program(node: Node, tile: BeamTile | None = None) -> Program | None:
    """BeamStepItems1, 2 or 3, whose inputs operators/beam_step_items.py lists; None where BeamStep has no kernel."""
    shape, level = shape_of(node), LEVEL_OF[node.operator]
    if not shape.has_kernel:
        return None
    tile = tile or (MASKED_TILE if level > 1 else BeamTile())
    _check_inputs(node, level)
    rows = dim(0, 0)
    buffers = {
        **buffers_of(shape),
        "mask": Buffer(rows * (shape.tiles * TILE // UNIT)),
        "valid": Buffer(rows * (shape.tiles * 4)),
    }
    if level == 2:
        buffers |= _rules_buffers(node, shape)
    scratch = numbered(buffers)
    bits = "place" if level == 2 else "mask"
    mask = Mask(scratch[bits], scratch["valid"], Input(LIMITS[level]), placed=level == 2)
    first = _pairs(node, shape, tile, scratch) if level == 2 else (_partials(node, level, shape, tile, scratch),)
    return checked_program(node, shape, buffers, (*first, *selection(node, shape, tile, scratch, mask)))


def _check_inputs(node: Node, level: int) -> None:
    """Codes are INT64, everything of the index and the rules INT32."""
    count = {1: 5, 2: 8, 3: 11}[level]
    if len(node.inputs) != count:
        raise BuildError(f"it has {len(node.inputs)} inputs, needs {count}", where=node.operator, hint="correct the graph")
    for place in range(2, count):
        expect(node, place, "int64" if place < 1 + level else "int32")
    if level > 1 and static(node, 1 + level, 1) != words_of(static(node, 1 + level, 0)):
        raise BuildError("the pair table has not a bit for each pair", where=node.operator, hint="correct the graph")


def _rules_buffers(node: Node, shape: BeamShape) -> dict[str, Buffer]:
    """Of each request its allowed classes, of each row which of its pairs are allowed, in bits; and where a row's bits lie."""
    classes = triton.next_power_of_2(words_of(static(node, 7, 1)))
    listed = (shape.tiles * TILE // WORD + 1) * 4
    rows = dim(0, 0)
    return {"classes": Buffer(dim(1, 0) * (classes * 4)), "listed": Buffer(rows * listed), "place": Buffer(rows * 8)}


def _pairs(node: Node, shape: BeamShape, tile: BeamTile, scratch: dict[str, Scratch]) -> tuple[Launch, Launch]:
    """Level 2: the mask of the rows whose requests restrict categories, and the pass over the logits."""
    words, classes = shape.tiles * (TILE // WORD), static(node, 7, 1)
    both = {"ROWS": shape.rows, "WORDS": static(node, 3, 1)}
    ruled = {"CLASSES": classes, "CLASSES_SIZE": triton.next_power_of_2(words_of(classes)), "MASK_WORDS": words}
    ruled |= {"COUNT": RULED_ROWS, "PAIRS": RULED_PAIRS, "CHUNK": RULED_WORDS}
    count = min(tile.partials, triton.next_power_of_2(shape.tiles))
    passed = {"V": shape.vocabulary, "TILES": shape.tiles, "COUNT": count}

    def kernel(name: str, types: tuple[str, ...], constants: dict[str, int], warps: int) -> Kernel:
        return node.compile(Build(beam_pairs.__name__, name, types, {**both, **constants}, node.capability, warps))

    rules = kernel("items_rules_2", ("*i64", *["*i32"] * 8), ruled, RULED_WARPS)
    partials = kernel("items_partials_2", ("*fp16", "*i64", *["*i32"] * 3, "*i64", "*fp16", "*i32", "*fp32"), passed, tile.partials_warps)
    made = tuple(scratch[name] for name in ("classes", "listed", "mask"))
    results = tuple(scratch[name] for name in ("mask", "place", "largest", "valid", "sum"))
    return (
        Launch(rules, (-(-shape.rows // RULED_ROWS), dim(1, 0), 1), (*map(Input, range(2, 8)), *made)),
        Launch(partials, (dim(0, 0) * -(-shape.tiles // count), 1, 1), (Input(0), Input(2), Input(3), Input(6), *results)),
    )


def _partials(node: Node, level: int, shape: BeamShape, tile: BeamTile, scratch: dict[str, Scratch]) -> Launch:
    """Levels 1 and 3: the pass over the logits, and what the index and the rules make of them."""
    given = {1: tuple(map(Input, range(2, 5))), 3: tuple(map(Input, range(2, 11)))}
    codes = {1: 0, 3: 2}[level]  # inputs that are INT64
    rows, tiles = dim(0, 0), dim(0, 0) * shape.tiles
    types = ("*fp16", *["*i64"] * codes, *["*i32"] * (len(given[level]) - codes), "*i32" if level == 3 else "*i8", "*fp16", "*i32", "*fp32")
    constants = {"V": shape.vocabulary, "TILES": shape.tiles, "ROWS": shape.rows, "COUNT": tile.partials}
    constants["CLASSES"] = static(node, LIMITS[level] + 1, 1)
    ctas = cdiv(tiles, tile.partials)
    counts: tuple[Int32, ...] = (Int32(tiles),)
    if level == 3:
        constants |= {"WORDS": static(node, 4, 1), **_marking(shape, tile, static(node, 10, 1))}
        ctas, counts = ctas + cdiv(rows, MARKED_ROWS), (Int32(tiles), Int32(rows))
    types = (*types, *["i32"] * len(counts))
    kernel = node.compile(Build(__name__, f"items_partials_{level}", types, constants, node.capability, tile.partials_warps))
    results = (scratch[name] for name in ("mask", "largest", "valid", "sum"))
    return Launch(kernel, (ctas, 1, 1), (Input(0), *given[level], *results, *counts))


def _marking(shape: BeamShape, tile: BeamTile, excluded: int) -> dict[str, int]:
    """Constants of the CTAs that mark entries: spread over the first half of all."""
    return {
        "EXCLUDED": excluded,
        "STEPS": excluded.bit_length(),
        "TILES_SIZE": triton.next_power_of_2(shape.tiles),
        "MARKED": MARKED_ROWS,
        "CHUNK": MARKED_CHUNK,
        "SPREAD": max(1, shape.tiles * MARKED_ROWS // tile.partials // 2),
    }
