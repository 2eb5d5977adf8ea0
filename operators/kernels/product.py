"""Launch programs of matrix products: which kernel, in which tile, for which row counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...core.dtypes import DTYPES
from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import LANES_PER_WARP, NO_ADDRESS, TMA_ALIGNMENT, Node, by_rows, dependent, expect_constant, expect_size, static
from ..launch.program import Argument, Buffer, Expr, Input, Int32, Launch, Output, Program, Scratch, Tensor, cdiv, minimum
from ..launch.tiles import GemmTile, RowClass
from .warp_specialized import PRODUCT_REGISTERS, warp_specialized_build

OUTPUT_BYTES = 2
SUM_BYTES = 4  # of a part of K
LOAD_STAGES = 3
RESULT = Output(0)
MOST_WEIGHTS = 192 * 4  # bytes of them that a thread holds in registers, of 255 that it has
FEW_SUM, SUM = (1, 256, 2), (8, 128, 4)  # rows, output channels and warps of a CTA that adds parts: of tiles of 16 rows, of others


@dataclass(frozen=True)
class Product:
    """A matrix product x [rows, K] @ weight [N, K]^T.

    Attributes:
        dtype: Of x and weight.
        n: Output channels.
        k: Input channels.
        row_scales: Whether the activation's scale is one per row; None where nothing is scaled.
        residual: Whether one is added.
        promotion: Input channels after which the tensor core's sum goes to an FP32 one; 0 is never.
    """

    dtype: Literal["float16", "float8_e4m3fn"]
    n: int
    k: int
    row_scales: bool | None = None
    residual: bool = False
    promotion: int = 0

    @property
    def family(self) -> str:
        """Under which its tiles stand in the table: fp8_linear, fp8_linear_add, fp8_linear_promoted, linear, ..."""
        name = "linear" if self.dtype == "float16" else "fp8_linear"
        return name + ("_promoted" if self.promotion else "") + ("_add" if self.residual else "")

    def build(self, tile: GemmTile, capability: str) -> Build:
        """How the kernel that multiplies is compiled for a usable tile."""
        self.expect_steps(tile)
        if tile.slices or tile.parts > 1:
            return self._part_build(tile, capability)
        operand = DTYPES[self.dtype].pointer
        constants: dict[str, int | bool] = {
            "N": self.n,
            "K": self.k,
            **self._end(),
            "PROMOTE": bool(self.promotion),
            "M_TILE": tile.m,
            "N_TILE": tile.n,
            "K_TILE": tile.k,
            "GROUP": tile.group,
        }
        types = (operand, operand, "*fp16", "*fp32", "*fp32", "*fp16", "i32")
        if not tile.ctas:
            constants["THREADS"] = tile.warps * LANES_PER_WARP
            return dependent(Build(f"{__package__}.gemm", "gemm", types, constants, capability, tile.warps, tile.stages))
        constants |= {"CTAS": tile.ctas, "STAGES": tile.stages}
        return warp_specialized_build(
            "gemm_sm90", types, constants, capability, rows=tile.m, registers=PRODUCT_REGISTERS, where=self.family
        )

    def expect_steps(self, tile: GemmTile) -> None:
        """Check that sums are promoted after a step, or never."""
        if self.promotion not in (0, tile.k):
            hint = f"choose 0 or 128, and tiles with k = {self.promotion}"
            raise BuildError(f"promotion every {self.promotion} channels, in steps of {tile.k}", where=self.family, hint=hint)

    def _part_build(self, tile: GemmTile, capability: str) -> Build:
        """For few rows, or over a part of K. Parts leave as FP32 sums; scales and residual are for the launch that adds them."""
        if tile.ctas or tile.slices not in (0, tile.warps):
            hint = "choose ctas = 0, and as many slices as warps or none"
            raise BuildError(f"no kernel for a product cut as {tile}", where=self.family, hint=hint)
        operand, whole = DTYPES[self.dtype].pointer, tile.parts == 1
        constants: dict[str, int | bool] = {
            "N": self.n,
            "K": self.k,
            "PROMOTE": bool(self.promotion),
            "M_TILE": tile.m,
            "N_TILE": tile.n,
            "K_TILE": tile.k,
            "PARTS": tile.parts,
        }
        if not tile.slices:
            constants["THREADS"] = tile.warps * LANES_PER_WARP
            types: tuple[str, ...] = (operand, operand, "*fp32", "i32")
            return dependent(Build(f"{__package__}.gemm_part", "gemm_part", types, constants, capability, tile.warps, tile.stages))
        end = {"SCALED": False, "ROW_SCALES": False, "RESIDUAL": False} if not whole else self._end()
        types = (operand, operand, "*fp16" if whole else "*fp32", "*fp32", "*fp32", "*fp16", "i32")
        constants |= {"SLICES": tile.slices, **end}
        return dependent(Build(f"{__package__}.gemm_few", "gemm_few", types, constants, capability, tile.warps))

    def _end(self) -> dict[str, int | bool]:
        """What follows the sum."""
        return {"SCALED": self.row_scales is not None, "ROW_SCALES": bool(self.row_scales), "RESIDUAL": self.residual}

    def sum_build(self, tile: GemmTile, capability: str) -> Build:
        """How the kernel that adds parts is compiled."""
        m, n, warps = _sum_tile(tile)
        constants = {"N": self.n, **self._end(), "M_TILE": m, "N_TILE": n, "PARTS": tile.parts}
        types = ("*fp32", "*fp16", "*fp32", "*fp32", "*fp16", "i32")
        return dependent(Build(f"{__package__}.gemm_sum", "gemm_sum", types, constants, capability, warps))

    def usable(self, tile: GemmTile) -> GemmTile:
        """The tile, without descriptors where the strides do not allow them, and in parts whose weights a CTA of few rows can hold."""
        if tile.slices:
            step = tile.slices * tile.k
            held = max(1, MOST_WEIGHTS * tile.warps * LANES_PER_WARP // (tile.n * step * DTYPES[self.dtype].bytes))  # steps
            return replace(tile, parts=max(tile.parts, -(-self.k // (step * held))))
        aligned = self.k * DTYPES[self.dtype].bytes % TMA_ALIGNMENT == 0 and self.n * OUTPUT_BYTES % TMA_ALIGNMENT == 0
        if aligned or not tile.ctas:
            return tile
        return GemmTile(128, 128, tile.k, LOAD_STAGES, 8, tile.group)

    def launches(
        self, tile: GemmTile, node: Node, operands: tuple[Input, Input], end: tuple[Argument, ...], output: Argument = RESULT
    ) -> tuple[Launch, ...]:
        """The launches for a node in a usable tile: the product, and the sum of its parts if it has any.

        Args:
            tile: The tile.
            node: The node. Its first scratch buffer holds the parts.
            operands: x and weight.
            end: The activation's scale, the weight's and the residual.
            output: Where the result goes.
        """
        kernel, rows, grid = node.compile(self.build(tile, node.capability)), Int32(node.rows), (self.grid(tile, node.rows), 1, 1)
        if tile.parts == 1:
            return (Launch(kernel, grid, (*operands, output, *end, rows)),)
        nothing = (NO_ADDRESS,) * len(end) if tile.slices else ()
        m, n, _ = _sum_tile(tile)
        sums = Launch(
            node.compile(self.sum_build(tile, node.capability)),
            (cdiv(node.rows, m) * -(-self.n // n), 1, 1),
            (Scratch(0), output, *end, rows),
        )
        return Launch(kernel, grid, (*operands, Scratch(0), *nothing, rows)), sums

    def grid(self, tile: GemmTile, rows: Expr) -> Expr:
        """One CTA per tile and part of K, or as many as the GPU runs at a time."""
        tiles = cdiv(rows, tile.m) * (-(-self.n // tile.n) * tile.parts)
        return minimum(tiles, tile.ctas) if tile.ctas else tiles


def usable_classes(product: Product, node: Node) -> list[RowClass]:
    """The tiles of the table, as the product's strides allow them."""
    classes = node.tiles.classes(node.capability, product.family, (product.k, product.n))
    return [replace(each, tile=product.usable(_gemm_tile(each))) for each in classes]


def parts_scratch(product: Product, node: Node, classes: list[RowClass]) -> tuple[Buffer, ...]:
    """Room for the parts of as many rows as are cut into parts."""
    split = [each for each in classes if _gemm_tile(each).parts > 1]
    if not split:
        return ()
    sums = node.rows * max(_gemm_tile(each).parts for each in split)  # rows of them
    if all(each.max_rows for each in split):
        sums = minimum(sums, max((each.max_rows or 0) * _gemm_tile(each).parts for each in split))
    return (Buffer(sums * (SUM_BYTES * product.n)),)


def _gemm_tile(each: RowClass) -> GemmTile:
    assert isinstance(each.tile, GemmTile), each
    return each.tile


def _sum_tile(tile: GemmTile) -> tuple[int, int, int]:
    return FEW_SUM if tile.m <= 16 else SUM


def product_program(node: Node, product: Product, weight: int, scales: tuple[int, int] | None, residual: int | None) -> Program:
    """The program of a node whose inputs stand at the given places (`scales`: activation's, weight's)."""
    expect_product(node, product, weight, scales, residual)
    scale: tuple[Argument, ...] = (NO_ADDRESS, NO_ADDRESS) if scales is None else tuple(map(Input, scales))
    added: Argument = NO_ADDRESS if residual is None else Input(residual)
    classes = usable_classes(product, node)
    variants = by_rows(node.rows, classes, lambda tile: product.launches(tile, node, (Input(0), Input(weight)), (*scale, added)))
    return node.program((Tensor("float16", (*node.shape[:-1], product.n)),), variants, parts_scratch(product, node, classes))


def expect_product(node: Node, product: Product, weight: int, scales: tuple[int, int] | None, residual: int | None) -> None:
    """Check that the inputs fit together, and that weights and their scales are constants."""
    if static(node, weight, 0) != product.n or static(node, weight, 1) != product.k or node.width != product.k:
        shapes = [list(each.shape) for each in node.inputs]
        raise BuildError(f"its inputs do not fit together: {shapes}", where=node.operator, hint="correct the graph")
    for index in filter(None, (scales and scales[1], residual)):
        expect_size(node, index, product.n)
    for index in filter(None, (weight, scales and scales[1])):
        expect_constant(node, index)
