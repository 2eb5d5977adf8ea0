"""Launch programs of the experts with the norm behind them: the norm is part of combine.

It is cut as by itself, so that the bits are those of the two operators apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..launch.node import NO_ADDRESS, Node, epsilon_of, expect, expect_size, row_build
from ..launch.program import Argument, DType, Float32, Input, Int32, Launch, Output, Program, Tensor, cdiv
from ..launch.tiles import RowClass, tile_for
from ..moe_experts_norm import PAIRS
from .moe_combine_norm import moe_combine_norm, moe_combine_norm_quant
from .moe_experts import SUMMED, ExpertsProgram
from .rms_norm import norm_types
from .rms_norm_quant import PER_ROW, PER_TENSOR, quant_types


def moe_experts_norm_program(node: Node) -> Program:
    """Experts and norm to the sum FP16 [N, D], and what the norm makes of it; inputs as in operators/moe_experts_norm.py."""
    return _WithNorm(node).program()


@dataclass(frozen=True)
class _Norm:
    """What the norm of a node asks for.

    Attributes:
        family: Of its tiles in the table.
        kernel: The one that adds up a token's rows before.
        types: Of the arguments of the norm by itself; those of `kernel` have what is added up in the place of the first.
        arguments: Between the row and the number of rows.
        constants: Of the kernel.
        outputs: What it makes.
        epsilon: Added to the mean of squares.
    """

    family: str
    kernel: Any
    types: tuple[str, ...]
    arguments: tuple[Argument, ...]
    constants: Mapping[str, int | bool]
    outputs: tuple[Tensor, ...]
    epsilon: float


def _norm_of(node: Node, first: int, width: int) -> _Norm:
    """The norm of rows of a width, whose weight is input number `first` of the node. Its outputs follow the sum."""
    operator, epsilon = PAIRS[node.operator].norm.name, epsilon_of(node)
    weight = expect(node, first, "float16", "float32")
    expect_size(node, first, width)

    def output(dtype: DType, last: int) -> Tensor:
        return Tensor(dtype, (*node.shape[:-1], last))

    normed = output("float16", width)
    if operator == "RmsNorm":
        arguments = (Input(first), Output(1))
        return _Norm("rms_norm", moe_combine_norm, norm_types(weight), arguments, {}, (normed,), epsilon)
    codes, per_row = output("float8_e4m3fn", width), operator == "RmsNormQuantRow"
    outputs = (codes, output("float32", 1)) if per_row else (codes,)
    if not per_row:
        expect(node, first + 1, "float32")
        expect_size(node, first + 1, 1)
    last = 1 + len(outputs)
    read = node.is_read(last)
    return _Norm(
        family="rms_norm_quant",
        kernel=moe_combine_norm_quant,
        types=quant_types(weight),
        arguments=(Input(first), Output(1), Output(2) if per_row else Input(first + 1), Output(last) if read else NO_ADDRESS),
        constants={"GRANULARITY": PER_ROW if per_row else PER_TENSOR, "STORE_NORM": read},
        outputs=(*outputs, normed) if read else outputs,
        epsilon=epsilon,
    )


class _WithNorm(ExpertsProgram):
    """Makes the program of one node. Variants end where tiles of the experts or of the norm do."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.norm = _norm_of(node, len(self.inputs), self.sizes.d)
        of_norm = node.tiles.classes(node.capability, self.norm.family, (self.sizes.d,))
        ends = {each.max_rows for each in (*self.classes, *of_norm) if each.max_rows is not None}
        self.classes = [RowClass(end, tile_for(self.classes, end)) for end in (*sorted(ends), None)]

    def outputs(self) -> tuple[Tensor, ...]:
        return *super().outputs(), *self.norm.outputs

    def last(self, each: RowClass) -> Launch:
        """The rows are added up, and the norm is made of their sum."""
        norm, rows = self.norm, self.node.rows
        tile = self.row_tile(norm.family, self.sizes.d, each)
        constants = {**norm.constants, "WIDTH": self.sizes.d, "SLOTS": self.sizes.slots}
        build = row_build(norm.kernel, (*SUMMED, *norm.types[1:]), constants, tile, self.node.capability)
        return self.launch(build, cdiv(rows, tile.rows), *self.summed, *norm.arguments, Int32(rows), Float32(norm.epsilon))
