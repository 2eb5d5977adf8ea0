"""BeamStep on the GPU in four launches, exact and without floating-point atomics; the logits are read once.

partials: of every row and tile of 128 logits the largest, and the sum of exp(logit - largest).
totals:   of every row the normalizer, and the key of the best candidate of every group of tiles.
pick:     of every request the best `width` groups, then of their tiles, of their units of 8 logits, of their candidates: the
          best `width` candidates lie in the `width` pieces whose best candidate is best (operators/beam_step.py says why).
finish:   each candidate's place by counting those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import Node, expect, static
from ..launch.program import Argument, Buffer, Expr, Input, Int32, Kernel, Launch, Output, Program, Scratch, Tensor, Variant, cdiv, dim
from .beam_select import MAX_KEYS, as_key, as_word, key_of, selected, value_of

TILE = 128  # logits with one partial: the columns of a tile of the head's product
UNIT = 8  # logits of one load
MAX_SPAN = 8  # tiles of a group, as long as the groups of a request are few enough
MAX_WIDTH = MAX_KEYS * UNIT // TILE  # the units of the tiles kept are one selection
_TILE, _UNIT = tl.constexpr(TILE), tl.constexpr(UNIT)
_UNITS = tl.constexpr(TILE // UNIT)


@triton.jit
def total_key(logit, normalizer_N, score_N, row, present):
    """Key of (logit - normalizer) + score, the order of the ONNX function."""
    normalizer = tl.load(normalizer_N + row, mask=present, other=0.0)
    return key_of(logit - normalizer + tl.load(score_N + row, mask=present, other=0.0), present)


@triton.jit
def beam_partials(logits_NV, largest_NT, sum_NT, tiles, V: tl.constexpr, TILES: tl.constexpr, COUNT: tl.constexpr):
    """COUNT neighboring tiles of all `tiles`; TILES of a row, the last of which V may cut."""
    first = tl.program_id(0).to(tl.int64) * COUNT
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
    tl.store(sum_NT + first + number, tl.sum(tl.exp(x - base[:, None]), 1), mask=inside)


@triton.jit
def beam_totals(
    largest_NT, sum_NT, score_N, normalizer_N, key_NG, rows,
    TILES: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, GROUPS_TILE: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT rows. A row without a finite logit, with +inf or with NaN has the normalizer NaN."""
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
    key = key_of(best - normalizer[:, None] + score[:, None], group < GROUPS)
    tl.store(normalizer_N + row, normalizer, mask=row < rows)
    tl.store(key_NG + row[:, None] * GROUPS + group, as_word(key), mask=(row < rows)[:, None] & (group < GROUPS))


@triton.jit
def keep(key_N, number_N, kept_K, KEEP: tl.constexpr):
    """The numbers of the KEEP largest keys, in the order of their positions; all threads see them afterwards."""
    take, place = selected(key_N, KEEP)
    tl.store(kept_K + place, number_N, mask=take)
    tl.debug_barrier()


@triton.jit
def keep_groups(
    group_key_N, kept_K, ROWS: tl.constexpr, GROUPS: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Keys come from memory; the number of a group is row * GROUPS + group."""
    position = tl.arange(0, SIZE)
    word = tl.load(group_key_N + position, mask=position < ROWS * GROUPS, other=0)
    keep(as_key(word), position, kept_K, KEEP)


@triton.jit
def keep_tiles(
    largest_RT, normalizer_R, score_R, group_K, kept_K,
    GROUPS: tl.constexpr, SPAN: tl.constexpr, TILES: tl.constexpr,
    FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Of FROM groups; the number of a tile is row * TILES + tile."""
    position = tl.arange(0, SIZE)
    inside = position < FROM * SPAN
    group = tl.load(group_K + position // SPAN, mask=inside, other=0)
    row = group // GROUPS
    tile = group % GROUPS * SPAN + position % SPAN
    present = inside & (tile < TILES)
    number = row * TILES + tile
    largest = tl.load(largest_RT + number, mask=present, other=0.0).to(tl.float32)
    keep(total_key(largest, normalizer_R, score_R, row, present), number, kept_K, KEEP)


@triton.jit
def unit_at(position, tile_K, TILES: tl.constexpr, V: tl.constexpr, FROM: tl.constexpr):
    """Row and first column of the unit at a position among those of FROM tiles, and whether it holds a logit."""
    inside = position < FROM * _UNITS
    tile = tl.load(tile_K + position // _UNITS, mask=inside, other=0)
    column = tile % TILES * _TILE + position % _UNITS * _UNIT
    return tile // TILES, column, inside & (column < V)


@triton.jit
def keep_units(
    logits_RV, normalizer_R, score_R, tile_K, key_U, kept_K,
    TILES: tl.constexpr, V: tl.constexpr, FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of FROM tiles; the number of a unit is the flat index of its first logit. Reads CHUNK units at a time to spare registers."""
    lane = tl.arange(0, _UNIT)[None, :]
    for first in range(0, SIZE, CHUNK):
        position = first + tl.arange(0, CHUNK)
        row, column, present = unit_at(position, tile_K, TILES, V, FROM)
        mask = present[:, None]
        if TILES * _TILE != V:
            mask = mask & (column[:, None] + lane < V)
        logit = tl.load(logits_RV + (row * V + column)[:, None] + lane, mask=mask, other=float("-inf"))
        largest = tl.max(logit, 1).to(tl.float32)
        tl.store(key_U + position, as_word(total_key(largest, normalizer_R, score_R, row, present)))
    tl.debug_barrier()
    every = tl.arange(0, SIZE)
    row_U, column_U, _present = unit_at(every, tile_K, TILES, V, FROM)
    keep(as_key(tl.load(key_U + every)), row_U * V + column_U, kept_K, KEEP)


@triton.jit
def keep_candidates(
    logits_RV, normalizer_R, score_R, unit_K, key_W, flat_W,
    V: tl.constexpr, FROM: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Of FROM units: keys and flat indices, in flat order."""
    position = tl.arange(0, SIZE)
    inside = position < FROM * _UNIT
    unit = tl.load(unit_K + position // _UNIT, mask=inside, other=0)
    row = unit // V
    flat = unit + position % _UNIT
    present = inside & (flat - row * V < V)
    logit = tl.load(logits_RV + flat, mask=present, other=0.0).to(tl.float32)
    key = total_key(logit, normalizer_R, score_R, row, present)
    take, place = selected(key, KEEP)
    tl.store(key_W + place, as_word(key), mask=take)
    tl.store(flat_W + place, flat, mask=take)


@triton.jit
def beam_pick(
    logits_NV, score_N, largest_NT, normalizer_N, group_key_BN, kept_B3W, unit_key_BU, key_BW, flat_BW,
    ROWS: tl.constexpr, V: tl.constexpr, TILES: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    KEPT_GROUPS: tl.constexpr, KEPT_TILES: tl.constexpr, KEPT_UNITS: tl.constexpr, CHUNK: tl.constexpr,
    GROUPS_SIZE: tl.constexpr, TILES_SIZE: tl.constexpr, UNITS_SIZE: tl.constexpr, CANDIDATES_SIZE: tl.constexpr,
):  # fmt: skip
    """A request; TILES and GROUPS of a row, SIZEs of the four selections. Positions and numbers are in the order of flat indices."""
    user = tl.program_id(0).to(tl.int64)
    logits_RV = logits_NV + user * (ROWS * V)
    normalizer_R = normalizer_N + user * ROWS
    score_R = score_N + user * ROWS
    group_K = kept_B3W + user * (3 * WIDTH)
    tile_K = group_K + WIDTH
    unit_K = tile_K + WIDTH
    keep_groups(group_key_BN + user * (ROWS * GROUPS), group_K, ROWS, GROUPS, KEPT_GROUPS, GROUPS_SIZE)
    largest_RT = largest_NT + user * (ROWS * TILES)
    keep_tiles(largest_RT, normalizer_R, score_R, group_K, tile_K, GROUPS, SPAN, TILES, KEPT_GROUPS, KEPT_TILES, TILES_SIZE)
    key_U = unit_key_BU + user * UNITS_SIZE
    keep_units(logits_RV, normalizer_R, score_R, tile_K, key_U, unit_K, TILES, V, KEPT_TILES, KEPT_UNITS, UNITS_SIZE, CHUNK)
    key_W, flat_W = key_BW + user * WIDTH, flat_BW + user * WIDTH
    keep_candidates(logits_RV, normalizer_R, score_R, unit_K, key_W, flat_W, V, KEPT_UNITS, WIDTH, CANDIDATES_SIZE)


@triton.jit
def beam_finish(
    key_BW, flat_BW, best_BW, parent_BW, token_BW,
    V: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """COUNT candidates of a request, which stand in flat order."""
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
    tl.store(best_BW + start + rank, value_of(key), mask=inside)
    tl.store(parent_BW + start + rank, (flat // V).to(tl.int64), mask=inside)
    tl.store(token_BW + start + rank, (flat % V).to(tl.int64), mask=inside)


@dataclass(frozen=True)
class BeamTile:
    """How the four launches are cut.

    Attributes:
        partials: Tiles of 128 logits of a CTA of the first launch.
        partials_warps: Of it.
        totals: Tiles of a CTA of the second launch, rounded to whole rows.
        pick_warps: Of the one CTA per request.
        chunk: Units of 8 logits that it reads at a time.
        finish: Candidates of a CTA of the last launch.
    """

    partials: int = 32
    partials_warps: int = 4
    totals: int = 1024
    pick_warps: int = 8
    chunk: int = 4096
    finish: int = 16


TOTALS_WARPS, FINISH_WARPS, FINISH_CHUNK = 4, 4, 256


@dataclass(frozen=True)
class BeamShape:
    """Static sizes of a BeamStep: rows of a request, codebook, beams to keep, and what follows from them."""

    rows: int
    vocabulary: int
    width: int

    @property
    def tiles(self) -> int:
        """Of a row."""
        return -(-self.vocabulary // TILE)

    @property
    def span(self) -> int:
        """Tiles of a group: more where there would be too many groups."""
        span: int = min(MAX_SPAN, triton.next_power_of_2(self.tiles))
        while span < self.tiles and self.rows * -(-self.tiles // span) > MAX_KEYS:
            span *= 2
        return span

    @property
    def groups(self) -> int:
        """Of a row."""
        return -(-self.tiles // self.span)

    @property
    def kept(self) -> tuple[int, int, int]:
        """Groups, tiles and units to keep: as many as beams, or all there are."""
        units = -(-self.vocabulary // UNIT)
        return (
            min(self.width, self.rows * self.groups),
            min(self.width, self.rows * self.tiles),
            min(self.width, self.rows * units),
        )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Keys of the four selections, padded to powers of two."""
        groups, tiles, units = self.kept
        counts = (self.rows * self.groups, groups * self.span, tiles * TILE // UNIT, units * UNIT)
        return tuple(map(triton.next_power_of_2, counts))


def beam_step_program(node: Node, tile: BeamTile = BeamTile()) -> Program | None:
    """BeamStep: logits FP16 [B * R, V], scores FP32 [B, R] to scores FP32, parents INT64 and tokens INT64 [B, width].

    None for more than MAX_WIDTH beams, or where a selection would have more than MAX_KEYS keys (1024 rows of 200,000 tokens).
    """
    shape = _shape(node)
    if max(shape.sizes) > MAX_KEYS or shape.width > MAX_WIDTH:
        return None
    batch, rows = dim(1, 0), dim(0, 0)
    per_row = shape.tiles * rows
    units = shape.sizes[2]
    buffers = {
        "largest": Buffer(per_row * 2),
        "sum": Buffer(per_row * 4),
        "normalizer": Buffer(rows * 4),
        "group_key": Buffer(rows * shape.groups * 4),
        "kept": Buffer(batch * (3 * shape.width * 4)),
        "unit_key": Buffer(batch * (units * 4)),
        "key": Buffer(batch * (shape.width * 4)),
        "flat": Buffer(batch * (shape.width * 4)),
    }
    launches = _launches(node, shape, tile, batch, {name: Scratch(number) for number, name in enumerate(buffers)})
    outputs = tuple(Tensor(dtype, (batch, shape.width)) for dtype in ("float32", "int64", "int64"))
    program = Program(node.inputs, outputs, (Variant(1, launches),), tuple(buffers.values()))
    program.check()
    return program


def _shape(node: Node) -> BeamShape:
    """Raises BuildError for what cannot be a BeamStep."""
    expect(node, 0, "float16")
    expect(node, 1, "float32")
    if "width" not in node.attributes:
        raise BuildError("the attribute width is missing", where=node.operator, hint="correct the graph")
    shape = BeamShape(static(node, 1, 1), node.width, int(node.attributes["width"]))
    candidates = shape.rows * shape.vocabulary
    if not 1 <= shape.width <= candidates:
        raise BuildError(f"it cannot keep {shape.width} of {candidates} candidates", where=node.operator, hint="correct the graph")
    return shape


def _launches(node: Node, shape: BeamShape, tile: BeamTile, batch: Expr, scratch: dict[str, Scratch]) -> tuple[Launch, ...]:
    rows = dim(0, 0)
    logits, scores = Input(0), Input(1)
    partial = (scratch["largest"], scratch["sum"])
    width = {"V": shape.vocabulary, "WIDTH": shape.width}
    groups_tile = triton.next_power_of_2(shape.groups)
    count = max(1, tile.totals // (groups_tile * shape.span))

    def kernel(name: str, types: tuple[str, ...], constants: dict[str, int], warps: int) -> Kernel:
        return node.compile(Build(__name__, name, types, constants, node.capability, warps))

    partials = kernel(
        "beam_partials",
        ("*fp16", "*fp16", "*fp32", "i32"),
        {"V": shape.vocabulary, "TILES": shape.tiles, "COUNT": tile.partials},
        tile.partials_warps,
    )
    totals = kernel(
        "beam_totals",
        ("*fp16", "*fp32", "*fp32", "*fp32", "*i32", "i32"),
        {"TILES": shape.tiles, "SPAN": shape.span, "GROUPS": shape.groups, "GROUPS_TILE": groups_tile, "COUNT": count},
        TOTALS_WARPS,
    )
    names = ("KEPT_GROUPS", "KEPT_TILES", "KEPT_UNITS", "GROUPS_SIZE", "TILES_SIZE", "UNITS_SIZE", "CANDIDATES_SIZE")
    sizes = dict(zip(names, (*shape.kept, *shape.sizes), strict=True))
    cut = {"ROWS": shape.rows, "TILES": shape.tiles, "SPAN": shape.span, "GROUPS": shape.groups}
    pick = kernel(
        "beam_pick",
        ("*fp16", "*fp32", "*fp16", "*fp32", "*i32", "*i32", "*i32", "*i32", "*i32"),
        {**width, **cut, **sizes, "CHUNK": min(tile.chunk, shape.sizes[2])},
        tile.pick_warps,
    )
    finish = kernel(
        "beam_finish",
        ("*i32", "*i32", "*fp32", "*i64", "*i64"),
        {**width, "COUNT": tile.finish, "CHUNK": FINISH_CHUNK},
        FINISH_WARPS,
    )
    chosen = (scratch["key"], scratch["flat"])
    between: tuple[Argument, ...] = (scratch["largest"], scratch["normalizer"], scratch["group_key"], scratch["kept"], scratch["unit_key"])
    tiles = rows * shape.tiles
    return (
        Launch(partials, (cdiv(tiles, tile.partials), 1, 1), (logits, *partial, Int32(tiles))),
        Launch(totals, (cdiv(rows, count), 1, 1), (*partial, scores, scratch["normalizer"], scratch["group_key"], Int32(rows))),
        Launch(pick, (batch, 1, 1), (logits, scores, *between, *chosen)),
        Launch(finish, (batch, -(-shape.width // tile.finish), 1), (*chosen, Output(0), Output(1), Output(2))),
    )
