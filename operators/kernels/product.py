"""Launch programs of matrix products: which of the two kernels, in which tile, for which row counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.dtypes import DTYPES
from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import LANES_PER_WARP, NO_ADDRESS, TMA_ALIGNMENT, Node, by_rows, dependent, expect_size, static
from ..launch.program import Argument, Expr, Input, Int32, Launch, Output, Program, Tensor, cdiv, minimum
from ..launch.tiles import GemmTile
from .warp_specialized import PRODUCT_REGISTERS, warp_specialized_build

OUTPUT_BYTES = 2
LOAD_STAGES = 3


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
        """How its kernel is compiled for a tile."""
        if self.promotion not in (0, tile.k):
            hint = f"choose 0 or 128, and tiles with k = {self.promotion}"
            raise BuildError(f"promotion every {self.promotion} channels, in steps of {tile.k}", where=self.family, hint=hint)
        operand = DTYPES[self.dtype].pointer
        constants: dict[str, int | bool] = {
            "N": self.n,
            "K": self.k,
            "SCALED": self.row_scales is not None,
            "ROW_SCALES": bool(self.row_scales),
            "RESIDUAL": self.residual,
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

    def usable(self, tile: GemmTile) -> GemmTile:
        """The tile, without descriptors where the strides do not allow them."""
        aligned = self.k * DTYPES[self.dtype].bytes % TMA_ALIGNMENT == 0 and self.n * OUTPUT_BYTES % TMA_ALIGNMENT == 0
        if aligned or not tile.ctas:
            return tile
        return GemmTile(128, 128, tile.k, LOAD_STAGES, 8, tile.group)

    def launch(self, tile: GemmTile, node: Node, arguments: tuple[Argument, ...]) -> Launch:
        """The launch for a node: one CTA per tile, or as many as the GPU runs at a time."""
        tile = self.usable(tile)
        kernel = node.compile(self.build(tile, node.capability))
        return Launch(kernel, (self.grid(tile, node.rows), 1, 1), arguments)

    def grid(self, tile: GemmTile, rows: Expr) -> Expr:
        tiles = cdiv(rows, tile.m) * -(-self.n // tile.n)
        return minimum(tiles, tile.ctas) if tile.ctas else tiles


def product_program(node: Node, product: Product, weight: int, scales: tuple[int, int] | None, residual: int | None) -> Program:
    """The program of a node whose inputs stand at the given places (`scales`: activation's, weight's)."""
    if static(node, weight, 0) != product.n or static(node, weight, 1) != product.k or node.width != product.k:
        shapes = [list(each.shape) for each in node.inputs]
        raise BuildError(f"its inputs do not fit together: {shapes}", where=node.operator, hint="correct the graph")
    for index in filter(None, (scales and scales[1], residual)):
        expect_size(node, index, product.n)
    scale: tuple[Argument, ...] = (NO_ADDRESS, NO_ADDRESS) if scales is None else tuple(map(Input, scales))
    added: Argument = NO_ADDRESS if residual is None else Input(residual)
    arguments = (Input(0), Input(weight), Output(0), *scale, added, Int32(node.rows))
    classes = node.tiles.classes(node.capability, product.family, (product.k, product.n))
    variants = by_rows(node.rows, classes, lambda tile: (product.launch(tile, node, arguments),))
    return node.program((Tensor("float16", (*node.shape[:-1], product.n)),), variants)
