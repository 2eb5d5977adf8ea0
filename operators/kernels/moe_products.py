"""The experts of a node: their sizes, the sorted rows that they can need, and how their two products are compiled for a tile.

A persistent tile is one of a warp-specialized kernel (`ctas` of the tile is not 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.dtypes import DTYPES
from ...core.precision import BLOCK
from ..launch.compile import Build
from ..launch.node import LANES_PER_WARP, TMA_ALIGNMENT, dependent
from ..launch.program import Expr, minimum
from ..launch.tiles import ExpertTile
from .moe_scheme import Scheme, Share
from .warp_specialized import PRODUCT_REGISTERS, WARPGROUP_ROWS, warp_specialized_build

TWO_CONSUMERS = 128  # rows of their tile
POINTERS = ExpertTile(64, 64, 64, 3, 3, 4)  # where strides allow no descriptors
FUSED_COLUMNS = 128  # hidden channels of a tile of the up product that computes the activation


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
            "GROUP": 0,
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
        m, stages = rows_and_stages(tile, down)
        constants |= {"M_TILE": m, "K_TILE": k_tile}
        constants |= {"THREADS": tile.warps * LANES_PER_WARP}
        return dependent(Build(f"{__package__}.moe_gemm", "moe_gemm", types, constants, capability, tile.warps, stages))


def align(tile: ExpertTile) -> int:
    """Sorted rows of an expert begin at a multiple of it."""
    return WARPGROUP_ROWS if tile.ctas else tile.up_m


def rows_and_stages(tile: ExpertTile, down: bool) -> tuple[int, int]:
    """Rows of a product's tiles, and stages of its main loop."""
    return (tile.down_m, tile.down_stages) if down else (tile.up_m, tile.up_stages)


def _persistent(
    kernel: str, types: tuple[str, ...], constants: Mapping[str, int | bool], tile: ExpertTile, down: bool, k_tile: int, capability: str
) -> Build:
    m, stages = rows_and_stages(tile, down)
    cut = {"M_TILE": m, "K_TILE": k_tile, "CTAS": tile.ctas, "STAGES": stages}
    return warp_specialized_build(kernel, types, {**constants, **cut}, capability, rows=m, registers=PRODUCT_REGISTERS, where=kernel)
