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

from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import NO_ADDRESS, Node, expect, static
from ..launch.program import Argument, Buffer, Input, Int32, Kernel, Launch, Output, Program, Scratch, Tensor, Variant, cdiv, dim
from . import beam_kernels
from .beam_kernels import TILE, UNIT
from .beam_select import MAX_KEYS

MAX_SPAN = 8  # tiles of a group, as long as the groups of a request are few enough
MAX_WIDTH = MAX_KEYS * UNIT // TILE  # the units of the tiles kept are one selection


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
    def has_kernel(self) -> bool:
        """Whether no selection has too many keys."""
        return max(self.sizes) <= MAX_KEYS and self.width <= MAX_WIDTH

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Keys of the four selections, padded to powers of two."""
        groups, tiles, units = self.kept
        counts = (self.rows * self.groups, groups * self.span, tiles * TILE // UNIT, units * UNIT)
        return tuple(map(triton.next_power_of_2, counts))


@dataclass(frozen=True)
class Mask:
    """What the masked kernels get beside their other arguments.

    Attributes:
        bits: Scratch of a bit for each logit, a row filled up to whole tiles; or of the address of each row's.
        placed: Whether these are addresses.
        valid: Scratch of the key of the largest candidate of each tile, as a signed word.
        limits: Input of the requests' limits, the first of which is the number of beams.
    """

    bits: Scratch
    valid: Scratch
    limits: Input
    placed: bool = False

    @property
    def kind(self) -> int:
        """As the kernels' MASKED."""
        return beam_kernels.PLACED_ROWS if self.placed else beam_kernels.MASKED_ROWS


def beam_step_program(node: Node, tile: BeamTile = BeamTile()) -> Program | None:
    """BeamStep: logits FP16 [B * R, V], scores FP32 [B, R] to scores FP32, parents INT64 and tokens INT64 [B, width].

    None for more than MAX_WIDTH beams, or where a selection would have more than MAX_KEYS keys (1024 rows of 200,000 tokens).
    """
    shape = shape_of(node)
    if not shape.has_kernel:
        return None
    buffers = buffers_of(shape)
    scratch = numbered(buffers)
    launches = (_partials(node, shape, tile, scratch), *selection(node, shape, tile, scratch, None))
    return checked_program(node, shape, buffers, launches)


def _partials(node: Node, shape: BeamShape, tile: BeamTile, scratch: dict[str, Scratch]) -> Launch:
    """The pass over the logits."""
    constants = {"V": shape.vocabulary, "TILES": shape.tiles, "COUNT": tile.partials}
    types = ("*fp16", "*fp16", "*fp32", "i32")
    kernel = node.compile(Build(beam_kernels.__name__, "beam_partials", types, constants, node.capability, tile.partials_warps))
    tiles = dim(0, 0) * shape.tiles
    return Launch(kernel, (cdiv(tiles, tile.partials), 1, 1), (Input(0), scratch["largest"], scratch["sum"], Int32(tiles)))


def shape_of(node: Node) -> BeamShape:
    """Raises BuildError for what cannot be a beam step."""
    expect(node, 0, "float16")
    expect(node, 1, "float32")
    if "width" not in node.attributes:
        raise BuildError("the attribute width is missing", where=node.operator, hint="correct the graph")
    shape = BeamShape(static(node, 1, 1), node.width, int(node.attributes["width"]))
    candidates = shape.rows * shape.vocabulary
    if not 1 <= shape.width <= candidates:
        raise BuildError(f"it cannot keep {shape.width} of {candidates} candidates", where=node.operator, hint="correct the graph")
    return shape


def buffers_of(shape: BeamShape) -> dict[str, Buffer]:
    """Scratch of the kernels, by name, in the order of their numbers."""
    batch, rows = dim(1, 0), dim(0, 0)
    per_row = shape.tiles * rows
    return {
        "largest": Buffer(per_row * 2),
        "sum": Buffer(per_row * 4),
        "normalizer": Buffer(rows * 4),
        "group_key": Buffer(rows * shape.groups * 4),
        "kept": Buffer(batch * (3 * shape.width * 4)),
        "unit_key": Buffer(batch * (shape.sizes[2] * 4)),
        "key": Buffer(batch * (shape.width * 4)),
        "flat": Buffer(batch * (shape.width * 4)),
    }


def numbered(buffers: dict[str, Buffer]) -> dict[str, Scratch]:
    """Each buffer as an argument."""
    return {name: Scratch(number) for number, name in enumerate(buffers)}


def checked_program(node: Node, shape: BeamShape, buffers: dict[str, Buffer], launches: tuple[Launch, ...]) -> Program:
    """A program of these launches with the outputs of a beam step."""
    outputs = tuple(Tensor(dtype, (dim(1, 0), shape.width)) for dtype in ("float32", "int64", "int64"))
    return node.program(outputs, (Variant(1, launches),), tuple(buffers.values()))


def selection(node: Node, shape: BeamShape, tile: BeamTile, scratch: dict[str, Scratch], mask: Mask | None) -> tuple[Launch, ...]:
    """The launches behind the pass over the logits."""
    rows, batch = dim(0, 0), dim(1, 0)
    logits, scores = Input(0), Input(1)
    masked = {"MASKED": beam_kernels.OPEN if mask is None else mask.kind}
    bits_type = "*i64" if mask is not None and mask.placed else "*i8"
    valid, bits, limits = (scratch["largest"], NO_ADDRESS, NO_ADDRESS) if mask is None else (mask.valid, mask.bits, mask.limits)
    kind = "*fp16" if mask is None else "*i32"
    width = {"V": shape.vocabulary, "WIDTH": shape.width}
    groups_tile = triton.next_power_of_2(shape.groups)
    count = max(1, tile.totals // (groups_tile * shape.span))

    def kernel(name: str, types: tuple[str, ...], constants: dict[str, int], warps: int) -> Kernel:
        return node.compile(Build(beam_kernels.__name__, name, types, {**constants, **masked}, node.capability, warps))

    totals = kernel(
        "beam_totals",
        ("*fp16", kind, "*fp32", "*fp32", "*fp32", "*i32", "i32"),
        {"TILES": shape.tiles, "SPAN": shape.span, "GROUPS": shape.groups, "GROUPS_TILE": groups_tile, "COUNT": count},
        TOTALS_WARPS,
    )
    names = ("KEPT_GROUPS", "KEPT_TILES", "KEPT_UNITS", "GROUPS_SIZE", "TILES_SIZE", "UNITS_SIZE", "CANDIDATES_SIZE")
    sizes = dict(zip(names, (*shape.kept, *shape.sizes), strict=True))
    cut = {"ROWS": shape.rows, "TILES": shape.tiles, "SPAN": shape.span, "GROUPS": shape.groups}
    pick = kernel(
        "beam_pick",
        ("*fp16", bits_type, "*fp32", kind, "*fp32", "*i32", "*i32", "*i32", "*i32", "*i32"),
        {**width, **cut, **sizes, "CHUNK": min(tile.chunk, shape.sizes[2])},
        tile.pick_warps,
    )
    finish = kernel(
        "beam_finish",
        ("*i32", "*i32", "*i32", "*fp32", "*i64", "*i64"),
        {**width, "COUNT": tile.finish, "CHUNK": FINISH_CHUNK},
        FINISH_WARPS,
    )
    chosen = (scratch["key"], scratch["flat"])
    partial = (scratch["largest"], valid, scratch["sum"])
    between: tuple[Argument, ...] = (valid, scratch["normalizer"], scratch["group_key"], scratch["kept"], scratch["unit_key"])
    return (
        Launch(totals, (cdiv(rows, count), 1, 1), (*partial, scores, scratch["normalizer"], scratch["group_key"], Int32(rows))),
        Launch(pick, (batch, 1, 1), (logits, bits, scores, *between, *chosen)),
        Launch(finish, (batch, -(-shape.width // tile.finish), 1), (*chosen, limits, Output(0), Output(1), Output(2))),
    )
