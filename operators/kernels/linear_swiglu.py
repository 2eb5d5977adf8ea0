"""LinearSwiGlu and Fp8LinearSwiGluQuantTensor on the GPU: one launch, or those of the parts where the table says these are faster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ...core.dtypes import DTYPES
from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import HOPPER, NO_ADDRESS, TMA_ALIGNMENT, Node, expect, expect_size, static
from ..launch.program import Argument, Buffer, Input, Int32, Launch, Output, Program, Scratch, Tensor, Variant, cdiv, minimum
from ..launch.tiles import GemmTile, RowClass, RowTile, Tile, tile_for
from .moe_products import FUSED_COLUMNS, TWO_CONSUMERS
from .moe_scheme import Share
from .product import Product, expect_product, parts_scratch, usable_classes
from .swiglu import IN_FP16, PER_TENSOR, swiglu_build
from .warp_specialized import PRODUCT_REGISTERS, warp_specialized_build

FP16_BYTES = 2


class Cut(NamedTuple):
    """How a node is launched with so many rows: by one kernel in its tile, or by the kernels of its parts in theirs."""

    fused: GemmTile | None
    product: GemmTile | None = None
    activation: RowTile | None = None


@dataclass(frozen=True)
class GateUp:
    """The product of gate and up of a node, and what follows it.

    Attributes:
        node: The node. Its first input is x.
        product: Of gate and up; N is 2 H.
        weight: Which input the weight is.
        scales: The activation's, the weight's, and that of the result. FP16 has none.
    """

    node: Node
    product: Product
    weight: int
    scales: tuple[Argument, Argument, Argument] = (NO_ADDRESS, NO_ADDRESS, NO_ADDRESS)

    @property
    def hidden(self) -> int:
        return self.product.n // 2

    @property
    def codes(self) -> bool:
        """Whether operands and result are codes."""
        return self.product.dtype != "float16"

    def program(self) -> Program:
        """One variant for each range of rows that is cut in another way."""
        variants = tuple(Variant(1 if most is None else self.node.rows.le(most), self._launches(cut)) for most, cut in self.cuts)
        result = Tensor("float8_e4m3fn" if self.codes else "float16", (*self.node.shape[:-1], self.hidden))
        return self.node.program((result,), variants, (*self._parts, *self._gate_up))

    @cached_property
    def cuts(self) -> list[tuple[int | None, Cut]]:
        """How rows up to a number are cut, fewest first; None is without end."""
        tiles, capability = self.node.tiles, self.node.capability
        fused = tiles.classes(capability, f"{self.product.family}_swiglu", (self.product.k, self.product.n)) if self._fits else []
        products = usable_classes(self.product, self.node)
        activations = tiles.classes(capability, "swiglu_quant" if self.codes else "swiglu", (self.hidden,))
        found: list[tuple[int | None, Cut]] = []
        for most in (*sorted({each.max_rows for each in (*fused, *products, *activations) if each.max_rows is not None}), None):
            cut = _cut(tile_for(fused, most) if fused else None, tile_for(products, most), tile_for(activations, most))
            if found and found[-1][1] == cut:
                found.pop()
            found.append((most, cut))
        return found

    @property
    def _fits(self) -> bool:
        """Whether there is a kernel for both: strides are those of descriptors."""
        width = DTYPES[self.product.dtype].bytes  # that of a result is the same
        return self.node.capability == HOPPER and not any(size * width % TMA_ALIGNMENT for size in (self.product.k, self.hidden))

    def build(self, tile: GemmTile) -> Build:
        """How the kernel that computes both is compiled: the experts' up product, for one expert that has all rows."""
        self.product.expect_steps(tile)
        if (tile.m, tile.n) != (TWO_CONSUMERS, 2 * FUSED_COLUMNS) or tile.group < 1:
            hint = f"choose {TWO_CONSUMERS} and {2 * FUSED_COLUMNS} in walks of at least one, or ctas = 0"
            what = f"no kernel for gate and up in tiles of {tile.m} x {tile.n} and walks of {tile.group}"
            raise BuildError(what, where=self.product.family, hint=hint)
        operand = DTYPES[self.product.dtype].pointer
        types = (operand, operand, operand, "*fp32", "*fp32", "*fp32", "*i32", "i32")
        x, weight, hidden = (Share.TENSOR, Share.CHANNEL, Share.EXPERT) if self.codes else (Share.NONE,) * 3
        constants = {
            "EXPERTS": 1,
            "N": self.product.n,
            "K": self.product.k,
            "X_STRIDE": self.product.k,
            "HIDDEN_STRIDE": self.hidden,
            "X_SCALE": int(x),
            "WEIGHT_SCALE": int(weight),
            "HIDDEN_SCALE": int(hidden),
            "PROMOTE": bool(self.product.promotion),
            "GROUP": tile.group,
            "M_TILE": tile.m,
            "K_TILE": tile.k,
            "CTAS": tile.ctas,
            "STAGES": tile.stages,
        }
        return warp_specialized_build(
            "moe_up_sm90", types, constants, self.node.capability, rows=tile.m, registers=PRODUCT_REGISTERS, where=self.product.family
        )

    def _launches(self, cut: Cut) -> tuple[Launch, ...]:
        rows, operands = Int32(self.node.rows), (Input(0), Input(self.weight))
        activation_scale, weight_scale, result_scale = self.scales
        if cut.fused is not None:
            grid = minimum(cdiv(self.node.rows, cut.fused.m) * -(-self.hidden // FUSED_COLUMNS), cut.fused.ctas)
            return (Launch(self.node.compile(self.build(cut.fused)), (grid, 1, 1), (*operands, Output(0), *self.scales, NO_ADDRESS, rows)),)
        assert cut.product is not None
        assert cut.activation is not None
        gate_up, form = Scratch(len(self._parts)), PER_TENSOR if self.codes else IN_FP16
        products = self.product.launches(cut.product, self.node, operands, (activation_scale, weight_scale, NO_ADDRESS), gate_up)
        kernel = self.node.compile(swiglu_build(form, self.hidden, cut.activation, self.node.capability))
        grid = cdiv(self.node.rows, cut.activation.rows)
        return (*products, Launch(kernel, (grid, 1, 1), (gate_up, Output(0), result_scale, rows)))

    @cached_property
    def _parts(self) -> tuple[Buffer, ...]:
        """Of products whose channels several CTAs share."""
        apart = [RowClass(most, cut.product) for most, cut in self.cuts if cut.product is not None]
        return parts_scratch(self.product, self.node, apart)

    @cached_property
    def _gate_up(self) -> tuple[Buffer, ...]:
        """FP16 result of the product, where the activation is a launch of its own."""
        apart = [most for most, cut in self.cuts if cut.product is not None]
        if not apart:
            return ()
        rows = self.node.rows if apart[-1] is None else minimum(self.node.rows, apart[-1])
        return (Buffer(rows * (self.product.n * FP16_BYTES)),)


def linear_swiglu_program(node: Node) -> Program:
    """LinearSwiGlu: x FP16 [..., K], weight FP16 [2 H, K], gate rows first, to FP16 [..., H]."""
    for index in range(2):
        expect(node, index, "float16")
    product = Product("float16", static(node, 1, 0), static(node, 1, 1))
    expect_product(node, product, 1, None, None)
    _expect_halves(node, product)
    return GateUp(node, product, 1).program()


def fp8_linear_swiglu_quant_tensor_program(node: Node) -> Program:
    """Fp8LinearSwiGluQuantTensor: codes [..., K], scale FP32 [1], weight codes [2 H, K], scales [2 H], scale [1] to codes [..., H]."""
    for index, dtype in enumerate(("float8_e4m3fn", "float32", "float8_e4m3fn", "float32", "float32")):
        expect(node, index, dtype)
    for index in (1, 4):
        expect_size(node, index, 1)
    if len(node.inputs[1].shape) > 1:
        raise BuildError("its activations have a scale per row", where=node.operator, hint="fuse products of one static scale alone")
    if "promotion" not in node.attributes:
        raise BuildError("the attribute promotion is missing", where=node.operator, hint="correct the graph")
    promotion = int(node.attributes["promotion"])
    product = Product("float8_e4m3fn", static(node, 2, 0), static(node, 2, 1), row_scales=False, promotion=promotion)
    expect_product(node, product, 2, (1, 3), None)
    _expect_halves(node, product)
    return GateUp(node, product, 2, (Input(1), Input(3), Input(4))).program()


def _expect_halves(node: Node, product: Product) -> None:
    if product.n % 2:
        raise BuildError(f"gate and up side by side cannot be {product.n} wide", where=node.operator, hint="correct the graph")


def _cut(fused: Tile | None, product: Tile, activation: Tile) -> Cut:
    """In the tile for both if it is one of the persistent kernel; the table says with ctas = 0 that the parts are faster."""
    if isinstance(fused, GemmTile) and fused.ctas:
        return Cut(fused)
    assert isinstance(product, GemmTile), product
    assert isinstance(activation, RowTile), activation
    return Cut(None, product, activation)
