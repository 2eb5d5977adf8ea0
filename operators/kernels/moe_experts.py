"""Launch programs of MoeExperts and its FP8 forms: rank, place, up product, activation where it is not part of it, down, combine.

Sorted rows are the tokens of each expert, one expert after the other (moe_place.py). A program whose tiles are persistent runs the up
product with the activation in its epilogue, except where the scale of a row needs all of its hidden channels, or where promoted sums
have too few registers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import triton

from ...core.dtypes import DTYPES
from ..launch.compile import Build
from ..launch.node import LANES_PER_WARP, NO_ADDRESS, Node, dependent
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
    Variant,
    cdiv,
    constant,
    maximum,
    minimum,
)
from ..launch.tiles import ExpertTile, RowClass, RowTile, merged, tile_for
from .moe_inputs import experts_of, places
from .moe_place import ENTRY
from .moe_products import FUSED_COLUMNS, align, rows_and_stages
from .moe_rank import block_builds, rank_build, tokens_of_block
from .moe_scheme import Share, scheme_of

SUMMED = ("*fp16", "*i32", "*fp16", "*fp16")  # types of `ExpertsProgram.summed`


def moe_experts_program(node: Node) -> Program:
    """MoeExperts and its FP8 forms to FP16 [N, D]; inputs as in operators/moe_experts*.py."""
    return ExpertsProgram(node).program()


class ExpertsProgram:
    """Makes the program of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.scheme = scheme_of(node.operator)
        self.inputs = places(self.scheme)
        self.sizes = experts_of(node)
        classes = node.tiles.classes(node.capability, self.scheme.family, (self.sizes.d, self.sizes.h))
        self.classes = merged([replace(each, tile=self.sizes.usable(_expert_tile(each))) for each in classes])

    def program(self) -> Program:
        rows = self.node.rows
        variants = tuple(Variant(1 if each.max_rows is None else rows.le(each.max_rows), self._launches(each)) for each in self.classes)
        return self.node.program(self.outputs(), variants, tuple(self._scratch.values()))

    def outputs(self) -> tuple[Tensor, ...]:
        """What the program makes."""
        return (Tensor("float16", (*self.node.shape[:-1], self.sizes.d)),)

    def last(self, each: RowClass) -> Launch:
        """What follows the down product: a token's rows are added up."""
        cut = self.row_tile("moe_combine", self.sizes.d, each)
        constants = {"WIDTH": self.sizes.d, "SLOTS": self.sizes.slots, "ROWS": cut.rows, "CHUNK": cut.chunk}
        types = (*SUMMED, "i32")
        build = dependent(Build(f"{__package__}.moe_combine", "moe_combine", types, constants, self.node.capability, cut.warps))
        return self.launch(build, cdiv(self.node.rows, cut.rows), *self.summed, Int32(self.node.rows))

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
            if tokens := tokens_of_block(self.row_tile("moe_rank", sizes.experts, each)):
                blocks = maximum(blocks, cdiv(largest, tokens))
            if not sizes.fused(tile):
                unfused = maximum(unfused, sizes.capacity(largest, tile))
        return {
            "rank": Buffer(4 * entries),
            "total": Buffer(4 * sizes.experts),
            "row": Buffer(4 * entries),
            "up_table": Buffer(4 * ENTRY.value * (tiles + 1)),
            "down_table": Buffer(4 * ENTRY.value * (tiles + 1)),
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

    def row_tile(self, family: str, width: int, each: RowClass) -> RowTile:
        """The tile of a memory-bound kernel for the rows of a class."""
        tile = tile_for(self.node.tiles.classes(self.node.capability, family, (width,)), each.max_rows)
        assert isinstance(tile, RowTile), tile
        return tile

    def _launches(self, each: RowClass) -> tuple[Launch, ...]:
        tile = _expert_tile(each)
        capacity = self.sizes.capacity(self.node.rows, tile)
        activation = () if self.sizes.fused(tile) else (self._hidden(tile, each, capacity),)
        return (
            *self._rank(each),
            self._place(tile, each, capacity),
            self._up(tile, capacity),
            *activation,
            self._gemm(tile, capacity, down=True),
            self.last(each),
        )

    def launch(self, build: Build, grid: Expr | int, *arguments: Argument) -> Launch:
        """Of a kernel that is compiled now."""
        return Launch(self.node.compile(build), (grid, 1, 1), arguments)

    def _rank(self, each: RowClass) -> tuple[Launch, ...]:
        sizes, rows, capability = self.sizes, self.node.rows, self.node.capability
        cut = self.row_tile("moe_rank", sizes.experts, each)
        index, rank, total = self._input("index"), self._buffer("rank"), self._buffer("total")
        if not tokens_of_block(cut):
            build = rank_build(sizes.experts, cut, capability)
            return (self.launch(build, sizes.experts * cut.rows, index, rank, total, Int32(rows * sizes.slots)),)
        blocks, count = cdiv(rows, cut.rows), self._buffer("count")
        number, offset = block_builds(sizes.experts, sizes.slots, cut, capability)
        return (
            self.launch(number, blocks, index, rank, count, Int32(rows), Int32(blocks)),
            self.launch(offset, sizes.experts, count, self._buffer("before"), total, Int32(blocks)),
        )

    def _place(self, tile: ExpertTile, each: RowClass, capacity: Expr) -> Launch:
        sizes, operand = self.sizes, DTYPES[self.scheme.operand].pointer
        cut = self.row_tile("moe_place", sizes.k * sizes.width, each)
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
            "TOKENS": tokens_of_block(self.row_tile("moe_rank", sizes.experts, each)),
        }
        build = dependent(Build(f"{__package__}.moe_place", "moe_place", types, constants, self.node.capability, cut.warps))
        read = (self._input(name) for name in ("x", "x_scale", "index", "weight"))
        scratch = (self._buffer(name) for name in ("rank", "total", "before", "x", "x_scale", "gate", "row", "up_table", "down_table"))
        return self.launch(build, cdiv(self.node.rows, cut.rows) + 2, *read, *scratch, Int32(self.node.rows), Int32(capacity))

    def _up(self, tile: ExpertTile, capacity: Expr) -> Launch:
        if not self.sizes.fused(tile):
            return self._gemm(tile, capacity, down=False)
        weights = (self._input("gate_up"), self._buffer("hidden"), self._x_scale, self._input("gate_up_scale"))
        grid = minimum(self.sizes.tiles(self.node.rows, tile.up_m) * -(-self.sizes.h // FUSED_COLUMNS), tile.ctas)
        build = self.sizes.up_build(tile, self.node.capability)
        return self.launch(build, grid, self._buffer("x"), *weights, self._hidden_scale, self._buffer("up_table"), Int32(capacity))

    @property
    def _x_scale(self) -> Argument:
        """Of sorted rows, or the one that all of them share."""
        return self._buffer("x_scale") if self.sizes.x_scales else self._input("x_scale")

    @property
    def _hidden_scale(self) -> Argument:
        """Given per expert, or written with the hidden activations."""
        return self._input("hidden_scale") if self.scheme.hidden is Share.EXPERT else self._buffer("hidden_scale")

    def _gemm(self, tile: ExpertTile, capacity: Expr, *, down: bool) -> Launch:
        if down:
            operands = (self._buffer("hidden"), self._input("down"), self._buffer("wide"), self._hidden_scale, self._input("down_scale"))
        else:
            operands = (self._buffer("x"), self._input("gate_up"), self._buffer("wide"), self._x_scale, self._input("gate_up_scale"))
        rows, channels = rows_and_stages(tile, down)[0], self.sizes.d if down else 2 * self.sizes.h
        tiles = self.sizes.tiles(self.node.rows, rows) * -(-channels // tile.n)
        grid = minimum(tiles, tile.ctas) if tile.ctas else tiles
        build = self.sizes.gemm_build(down, tile, self.node.capability)
        table = self._buffer("down_table" if down else "up_table")
        return self.launch(build, grid, *operands, self._buffer("gate"), table, Int32(capacity))

    def _hidden(self, tile: ExpertTile, each: RowClass, capacity: Expr) -> Launch:
        cut = self.row_tile("moe_hidden", self.sizes.h, each)
        types = ("*fp16", DTYPES[self.scheme.operand].pointer, "*fp32", "*i32", "i32")
        constants = {
            "SHARE": int(self.scheme.hidden),
            "WIDTH": self.sizes.h,
            "TILE": tile.up_m,
            "ROWS": cut.rows,
            "CHUNK": cut.chunk,
            "LANES": max(1, cut.warps // cut.rows) * LANES_PER_WARP,
        }
        build = dependent(Build(f"{__package__}.moe_hidden", "moe_hidden", types, constants, self.node.capability, cut.warps))
        arguments = (self._buffer("wide"), self._buffer("hidden"), self._hidden_scale, self._buffer("up_table"), Int32(capacity))
        ctas = self.sizes.tiles(self.node.rows, tile.up_m) * (tile.up_m // cut.rows)
        return self.launch(build, ctas, *arguments)

    @property
    def summed(self) -> tuple[Argument, ...]:
        """Arguments of what adds up a token's rows: what it reads, and the sum."""
        return self._buffer("wide"), self._buffer("row"), self._input("residual"), Output(0)


def _expert_tile(each: RowClass) -> ExpertTile:
    """Its tile, which its family in the table has."""
    assert isinstance(each.tile, ExpertTile), each.tile
    return each.tile
