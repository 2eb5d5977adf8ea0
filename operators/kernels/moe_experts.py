"""Launch programs of MoeExperts and its FP8 forms: rank, place, up product, activation where it is not part of it, down, combine.

Sorted rows are the tokens of each expert, one expert after the other (moe_place.py). A program whose tiles are persistent runs the up
product with the activation in its epilogue, except where the scale of a row needs all of its hidden channels, or where promoted sums
have too few registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import triton

from ...core.dtypes import DTYPES
from ...core.errors import BuildError
from ...core.precision import BLOCK
from ..launch.compile import Build
from ..launch.node import (
    HOPPER,
    LANES_PER_WARP,
    NO_ADDRESS,
    TMA_ALIGNMENT,
    WARPGROUP,
    Node,
    by_rows,
    dependent,
    expect,
    expect_size,
    static,
)
from ..launch.program import (
    Argument,
    Buffer,
    Expr,
    Input,
    Int32,
    Launch,
    Output,
    Program,
    Scratch,
    Tensor,
    cdiv,
    constant,
    maximum,
    minimum,
)
from ..launch.tiles import ExpertTile, RowClass, RowTile
from .moe_rank import block_builds, rank_build, tokens_of_block
from .moe_scheme import SCHEMES, Scheme, Share

PERSISTENT = {128: (168, 232, 40), 192: (128, 160, 32)}  # by a tile's rows, registers per thread at launch, to multiply, to load
TWO_CONSUMERS = 128  # rows of their tile
POINTERS = ExpertTile(64, 64, 64, 3, 3, 4)  # where strides allow no descriptors
FUSED_COLUMNS = 128  # hidden channels of a tile of the up product that computes the activation
WARPGROUP_ROWS = 64  # of an instruction of the tensor core; sorted rows of an expert begin at a multiple of them
ENTRY = 4  # numbers of a tile in a table, and before the first one


@dataclass(frozen=True)
class Experts:
    """Sizes of a node: E experts of D channels and H hidden ones, of `slots` per token.

    Attributes:
        k: Channels of the input, D or D in whole blocks.
        promotion: Input channels after which the tensor core's sum goes to an FP32 one; 0 is never, unless scales of blocks ask for it.
    """

    scheme: Scheme
    experts: int
    slots: int
    d: int
    h: int
    k: int
    promotion: int = 0

    @property
    def hidden_stride(self) -> int:
        """From row to row of the hidden activations: whole blocks where they have scales."""
        return -(-self.h // BLOCK) * BLOCK if self.scheme.hidden is Share.BLOCK else self.h

    @property
    def width(self) -> int:
        """Bytes of an operand."""
        return DTYPES[self.scheme.operand].bytes

    @property
    def up_promoted(self) -> bool:
        return bool(self.promotion) or Share.BLOCK in (self.scheme.x, self.scheme.weight)

    @property
    def down_promoted(self) -> bool:
        return bool(self.promotion) or Share.BLOCK in (self.scheme.hidden, self.scheme.weight)

    @property
    def x_scales(self) -> int:
        """Scales of a row of x."""
        return {Share.ROW: 1, Share.BLOCK: -(-self.k // BLOCK)}.get(self.scheme.x, 0)

    @property
    def hidden_scales(self) -> int:
        """Scales of a row of hidden activations."""
        return {Share.ROW: 1, Share.BLOCK: -(-self.h // BLOCK)}.get(self.scheme.hidden, 0)

    def fused(self, tile: ExpertTile) -> bool:
        """Whether the up product computes the activation. Promoted sums of gate and up need the registers of two consumers."""
        room = not self.up_promoted or tile.up_m == TWO_CONSUMERS
        return bool(tile.ctas) and room and self.scheme.hidden is not Share.ROW

    def usable(self, tile: ExpertTile) -> ExpertTile:
        """The tile, without descriptors where the strides do not allow them."""
        strides = (self.k * self.width, self.h * self.width, self.hidden_stride * self.width, 2 * self.d, 4 * self.h)
        return POINTERS if tile.ctas and any(stride % TMA_ALIGNMENT for stride in strides) else tile

    def tiles(self, rows: Expr, m: int) -> Expr:
        """Most tiles of m rows that so many tokens can need: every expert that is chosen wastes less than one."""
        entries = rows * self.slots
        return (entries + minimum(entries, self.experts) * (m - 1)) // m

    def capacity(self, rows: Expr, tile: ExpertTile) -> Expr:
        """Most sorted rows that so many tokens can need."""
        return self.tiles(rows, align(tile)) * align(tile)

    def up_build(self, tile: ExpertTile, capability: str) -> Build:
        """The up product with the activation in its epilogue."""
        operand = DTYPES[self.scheme.operand].pointer
        types = (operand, operand, operand, "*fp32", "*fp32", "*fp32", "*i32", "i32")
        constants = {
            "EXPERTS": self.experts,
            "N": 2 * self.h,
            "K": self.k,
            "X_STRIDE": self.k,
            "HIDDEN_STRIDE": self.hidden_stride,
            "X_SCALE": int(self.scheme.x),
            "WEIGHT_SCALE": int(self.scheme.weight),
            "HIDDEN_SCALE": int(self.scheme.hidden),
            "PROMOTE": self.up_promoted,
        }
        return _persistent("moe_up_sm90", types, constants, tile, False, BLOCK // self.width, capability)

    def gemm_build(self, down: bool, tile: ExpertTile, capability: str) -> Build:
        """The down product, or an up product that leaves gate and up in FP16."""
        operand = DTYPES[self.scheme.operand].pointer
        types = (operand, operand, "*fp16", "*fp32", "*fp32", "*fp32", "*i32", "i32")
        constants: dict[str, int | bool] = {
            "N": self.d if down else 2 * self.h,
            "K": self.h if down else self.k,
            "X_STRIDE": self.hidden_stride if down else self.k,
            "X_SCALE": int(self.scheme.hidden if down else self.scheme.x),
            "WEIGHT_SCALE": int(self.scheme.weight),
            "GATED": down,
            "PROMOTE": self.down_promoted if down else self.up_promoted,
            "N_TILE": tile.n,
        }
        k_tile = BLOCK // self.width
        if tile.ctas:
            return _persistent("moe_gemm_sm90", types, constants | {"EXPERTS": self.experts}, tile, down, k_tile, capability)
        m, stages = _cut(tile, down)
        constants |= {"M_TILE": m, "K_TILE": k_tile}
        constants |= {"THREADS": tile.warps * LANES_PER_WARP}
        return dependent(Build(f"{__package__}.moe_gemm", "moe_gemm", types, constants, capability, tile.warps, stages))


def align(tile: ExpertTile) -> int:
    """Sorted rows of an expert begin at a multiple of it."""
    return WARPGROUP_ROWS if tile.ctas else tile.up_m


def _cut(tile: ExpertTile, down: bool) -> tuple[int, int]:
    """Rows and stages of a product."""
    return (tile.down_m, tile.down_stages) if down else (tile.up_m, tile.up_stages)


def _persistent(
    name: str, types: tuple[str, ...], constants: Mapping[str, int | bool], tile: ExpertTile, down: bool, k_tile: int, capability: str
) -> Build:
    m, stages = _cut(tile, down)
    if m not in PERSISTENT or capability != HOPPER:
        hint = f"choose {' or '.join(map(str, PERSISTENT))} rows on {HOPPER}, or ctas = 0"
        raise BuildError(f"no warp-specialized kernel for tiles of {m} rows on {capability}", where=name, hint=hint)
    at_launch, many, few = PERSISTENT[m]
    cut = {"M_TILE": m, "K_TILE": k_tile, "CTAS": tile.ctas, "STAGES": stages, "REGISTERS": many, "FEW_REGISTERS": few}
    return Build(f"{__package__}.{name}", name, types, {**constants, **cut}, capability, WARPGROUP, registers=at_launch)


def moe_experts_program(node: Node) -> Program:
    """MoeExperts and its FP8 forms to FP16 [N, D]; inputs as in operators/moe_experts*.py."""
    return _Node(node).program()


class _Node:
    """Makes the program of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.scheme = SCHEMES[node.operator]
        self.inputs = _places(self.scheme)
        self._check_types()
        self.sizes = self._sizes()
        classes = node.tiles.classes(node.capability, self.scheme.family, (self.sizes.d, self.sizes.h))
        self.classes = [replace(each, tile=self.sizes.usable(_expert_tile(each))) for each in classes]

    def program(self) -> Program:
        variants = by_rows(self.node.rows, self.classes, self._launches)
        output = Tensor("float16", (*self.node.shape[:-1], self.sizes.d))
        program = Program(self.node.inputs, (output,), variants, tuple(self._scratch.values()))
        program.check()
        return program

    def _check_types(self) -> None:
        dtypes = {
            "x": self.scheme.operand,
            "gate_up": self.scheme.operand,
            "down": self.scheme.operand,
            "index": "int64",
            "residual": "float16",
        }
        for name, index in self.inputs.items():
            expect(self.node, index, dtypes.get(name, "float32"))
        for name in ("experts", *(["promotion"] if self.scheme.operand != "float16" else [])):
            if name not in self.node.attributes:
                raise BuildError(f"the attribute {name} is missing", where=self.node.operator, hint="correct the graph")

    def _sizes(self) -> Experts:
        node, inputs = self.node, self.inputs
        experts, promotion = int(node.attributes["experts"]), int(node.attributes.get("promotion", 0))
        d, h = static(node, inputs["residual"], -1), static(node, inputs["gate_up"], 0) // (2 * experts)
        if promotion not in (0, BLOCK):
            raise BuildError(f"promotion every {promotion} channels", where=node.operator, hint=f"choose 0 or {BLOCK}")
        sizes = Experts(self.scheme, experts, static(node, inputs["index"], -1), d, h, node.width, promotion)
        self._hold("gate_up", 2 * experts * h, node.width)
        self._hold("down", experts * d, h)
        expect_size(node, inputs["weight"], sizes.slots)
        if self.scheme.weight is Share.CHANNEL:
            self._hold("gate_up_scale", 2 * experts * h)
            self._hold("down_scale", experts * d)
        elif self.scheme.weight is Share.BLOCK:
            self._hold("gate_up_scale", 2 * experts * h, sizes.x_scales)
            self._hold("down_scale", experts * d, sizes.hidden_scales)
        if self.scheme.hidden is Share.EXPERT:
            self._hold("hidden_scale", experts)
        return sizes

    def _hold(self, name: str, *shape: int) -> None:
        found = tuple(static(self.node, self.inputs[name], axis) for axis in range(len(shape)))
        if found != shape:
            raise BuildError(f"{name} is {list(found)}, must be {list(shape)}", where=self.node.operator, hint="correct the graph")

    @cached_property
    def _scratch(self) -> dict[str, Buffer]:
        """Buffers by name, for the variant that needs most of each."""
        sizes, rows = self.sizes, self.node.rows
        entries = rows * sizes.slots
        tiles = capacity = unfused = blocks = constant(0)
        for each in self.classes:
            tile = _expert_tile(each)
            largest = rows if each.max_rows is None else minimum(rows, each.max_rows)
            tiles = maximum(tiles, sizes.tiles(largest, min(tile.up_m, tile.down_m)))
            capacity = maximum(capacity, sizes.capacity(largest, tile))
            if tokens := tokens_of_block(self._row_tile("moe_rank", sizes.experts, each)):
                blocks = maximum(blocks, cdiv(largest, tokens))
            if not sizes.fused(tile):
                unfused = maximum(unfused, sizes.capacity(largest, tile))
        return {
            "rank": Buffer(4 * entries),
            "total": Buffer(4 * sizes.experts),
            "row": Buffer(4 * entries),
            "up_table": Buffer(4 * ENTRY * (tiles + 1)),
            "down_table": Buffer(4 * ENTRY * (tiles + 1)),
            "gate": Buffer(4 * capacity),
            "x": Buffer(sizes.k * sizes.width * capacity),
            "x_scale": Buffer(4 * sizes.x_scales * capacity),
            "hidden": Buffer(sizes.hidden_stride * sizes.width * capacity),
            "hidden_scale": Buffer(4 * sizes.hidden_scales * capacity),
            "wide": Buffer(maximum(2 * sizes.d * capacity, 4 * sizes.h * unfused)),
            "count": Buffer(4 * sizes.experts * blocks),
            "before": Buffer(4 * triton.next_power_of_2(sizes.experts) * blocks),
        }

    def _buffer(self, name: str) -> Scratch:
        return Scratch(list(self._scratch).index(name))

    def _input(self, name: str) -> Argument:
        return Input(self.inputs[name]) if name in self.inputs else NO_ADDRESS

    def _row_tile(self, family: str, width: int, each: RowClass) -> RowTile:
        """The tile of a memory-bound kernel for the rows of a class."""
        tiles, capability = self.node.tiles, self.node.capability
        rows = tiles.classes(capability, family, (width,))
        tile = rows[-1].tile if each.max_rows is None else tiles.tile(capability, family, (width,), each.max_rows)
        assert isinstance(tile, RowTile), tile
        return tile

    def _launches(self, tile: ExpertTile) -> tuple[Launch, ...]:
        each = next(each for each in self.classes if each.tile == tile)
        capacity = self.sizes.capacity(self.node.rows, tile)
        activation = () if self.sizes.fused(tile) else (self._hidden(tile, each, capacity),)
        return (
            *self._rank(each),
            self._place(tile, each, capacity),
            self._up(tile, capacity),
            *activation,
            self._gemm(True, tile, capacity),
            self._combine(each),
        )

    def _launch(self, build: Build, grid: Expr | int, *arguments: Argument) -> Launch:
        return Launch(self.node.compile(build), (grid, 1, 1), arguments)

    def _rank(self, each: RowClass) -> tuple[Launch, ...]:
        sizes, rows, capability = self.sizes, self.node.rows, self.node.capability
        cut = self._row_tile("moe_rank", sizes.experts, each)
        index, rank, total = self._input("index"), self._buffer("rank"), self._buffer("total")
        if not tokens_of_block(cut):
            build = rank_build(sizes.experts, cut, capability)
            return (self._launch(build, sizes.experts * cut.rows, index, rank, total, Int32(rows * sizes.slots)),)
        blocks, count = cdiv(rows, cut.rows), self._buffer("count")
        number, offset = block_builds(sizes.experts, sizes.slots, cut, capability)
        return (
            self._launch(number, blocks, index, rank, count, Int32(rows), Int32(blocks)),
            self._launch(offset, sizes.experts, count, self._buffer("before"), total, Int32(blocks)),
        )

    def _place(self, tile: ExpertTile, each: RowClass, capacity: Expr) -> Launch:
        sizes, operand = self.sizes, DTYPES[self.scheme.operand].pointer
        cut = self._row_tile("moe_place", sizes.k * sizes.width, each)
        types = (operand, "*fp32", "*i64", "*fp32", "*i32", "*i32", "*i32", operand, "*fp32", "*fp32", "*i32", "*i32", "*i32", "i32", "i32")
        constants = {
            "WIDTH": sizes.k,
            "SCALES": sizes.x_scales,
            "SLOTS": sizes.slots,
            "EXPERTS": sizes.experts,
            "ALIGN": align(tile),
            "UP_TILE": tile.up_m,
            "DOWN_TILE": tile.down_m,
            "ROWS": cut.rows,
            "CHUNK": cut.chunk // sizes.width,
            "SLOT_TILE": triton.next_power_of_2(sizes.slots),
            "EXPERT_TILE": triton.next_power_of_2(sizes.experts),
            "SCALE_TILE": triton.next_power_of_2(max(1, sizes.x_scales)),
            "TOKENS": tokens_of_block(self._row_tile("moe_rank", sizes.experts, each)),
        }
        build = dependent(Build(f"{__package__}.moe_place", "moe_place", types, constants, self.node.capability, cut.warps))
        read = (self._input(name) for name in ("x", "x_scale", "index", "weight"))
        scratch = (self._buffer(name) for name in ("rank", "total", "before", "x", "x_scale", "gate", "row", "up_table", "down_table"))
        return self._launch(build, cdiv(self.node.rows, cut.rows) + 2, *read, *scratch, Int32(self.node.rows), Int32(capacity))

    def _up(self, tile: ExpertTile, capacity: Expr) -> Launch:
        if not self.sizes.fused(tile):
            return self._gemm(False, tile, capacity)
        hidden_scale = self._input("hidden_scale") if self.scheme.hidden is Share.EXPERT else self._buffer("hidden_scale")
        weights = (self._input("gate_up"), self._buffer("hidden"), self._x_scale, self._input("gate_up_scale"))
        grid = minimum(self.sizes.tiles(self.node.rows, tile.up_m) * -(-self.sizes.h // FUSED_COLUMNS), tile.ctas)
        build = self.sizes.up_build(tile, self.node.capability)
        return self._launch(build, grid, self._buffer("x"), *weights, hidden_scale, self._buffer("up_table"), Int32(capacity))

    @property
    def _x_scale(self) -> Argument:
        return self._buffer("x_scale") if self.sizes.x_scales else self._input("x_scale")

    def _gemm(self, down: bool, tile: ExpertTile, capacity: Expr) -> Launch:
        if down:
            scale = self._input("hidden_scale") if self.scheme.hidden is Share.EXPERT else self._buffer("hidden_scale")
            operands = (self._buffer("hidden"), self._input("down"), self._buffer("wide"), scale, self._input("down_scale"))
        else:
            operands = (self._buffer("x"), self._input("gate_up"), self._buffer("wide"), self._x_scale, self._input("gate_up_scale"))
        tiles = self.sizes.tiles(self.node.rows, _cut(tile, down)[0]) * -(-(self.sizes.d if down else 2 * self.sizes.h) // tile.n)
        grid = minimum(tiles, tile.ctas) if tile.ctas else tiles
        build = self.sizes.gemm_build(down, tile, self.node.capability)
        table = self._buffer("down_table" if down else "up_table")
        return self._launch(build, grid, *operands, self._buffer("gate"), table, Int32(capacity))

    def _hidden(self, tile: ExpertTile, each: RowClass, capacity: Expr) -> Launch:
        cut = self._row_tile("moe_hidden", self.sizes.h, each)
        types = ("*fp16", DTYPES[self.scheme.operand].pointer, "*fp32", "*i32", "i32")
        constants = {
            "SHARE": int(self.scheme.hidden),
            "WIDTH": self.sizes.h,
            "TILE": tile.up_m,
            "ROWS": cut.rows,
            "CHUNK": cut.chunk,
            "LANES": max(1, cut.warps // cut.rows) * 32,
        }
        build = dependent(Build(f"{__package__}.moe_hidden", "moe_hidden", types, constants, self.node.capability, cut.warps))
        scale = self._input("hidden_scale") if self.scheme.hidden is Share.EXPERT else self._buffer("hidden_scale")
        arguments = (self._buffer("wide"), self._buffer("hidden"), scale, self._buffer("up_table"), Int32(capacity))
        ctas = self.sizes.tiles(self.node.rows, tile.up_m) * (tile.up_m // cut.rows)
        return self._launch(build, ctas, *arguments)

    def _combine(self, each: RowClass) -> Launch:
        cut = self._row_tile("moe_combine", self.sizes.d, each)
        constants = {"WIDTH": self.sizes.d, "SLOTS": self.sizes.slots, "ROWS": cut.rows, "CHUNK": cut.chunk}
        types = ("*fp16", "*i32", "*fp16", "*fp16", "i32")
        build = dependent(Build(f"{__package__}.moe_combine", "moe_combine", types, constants, self.node.capability, cut.warps))
        arguments = (self._buffer("wide"), self._buffer("row"), self._input("residual"), Output(0), Int32(self.node.rows))
        return self._launch(build, cdiv(self.node.rows, cut.rows), *arguments)


def _expert_tile(each: RowClass) -> ExpertTile:
    """Its tile, which its family in the table has."""
    assert isinstance(each.tile, ExpertTile), each.tile
    return each.tile


def _places(scheme: Scheme) -> dict[str, int]:
    """Where each input of an operator stands."""
    scaled = scheme.operand != "float16"
    weights = ("gate_up", "gate_up_scale", "down", "down_scale") if scaled else ("gate_up", "down")
    hidden = ("hidden_scale",) if scheme.hidden is Share.EXPERT else ()
    names = ("x", *(("x_scale",) if scaled else ()), *weights, *hidden, "index", "weight", "residual")
    return {name: index for index, name in enumerate(names)}
