"""What kernel factories share: the node they are asked about, checks of its inputs, and launches of row kernels in all row classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from ...core.dtypes import DTYPES
from ...core.errors import BuildError
from .compile import Build, compiled
from .program import Argument, Buffer, Expr, InputType, Int64, Kernel, Launch, Program, Tensor, Variant, cdiv, constant, dim
from .tiles import RowClass, RowTile, Tiles, committed_tiles

NO_ADDRESS = Int64(0)  # where a kernel has a pointer it never follows
LANES_PER_WARP = 32
TMA_ALIGNMENT = 16  # bytes; strides of a descriptor of the tensor memory accelerator are multiples of it
HOPPER = "9.0"  # for which there are warp-specialized kernels
DEPENDENT = ("9.0", "12.0")  # have programmatic dependent launch
EARLY_ROWS = 4096  # up to which launches are short enough to gain from an early start (docs/kernels/README.md#starting-early)
WARPGROUP = 4  # warps that issue a tensor core instruction of that capability together


@dataclass(frozen=True)
class Node:
    """A node of the graph, as a kernel factory sees it.

    Attributes:
        operator: Its op type.
        inputs: Type and shape of each input as the kernel gets it, None where a dimension is dynamic.
        attributes: Its ONNX attributes.
        capability: Compute capability of the GPU, such as "9.0".
        read: For each output whether somebody reads it. Default: all are read.
        tiles: Default: the committed table.
        compile: Makes a kernel. Default: ahead of time, through the user's cache.
        constant: For each input whether it is a constant of the plan. Default: all may be.
    """

    operator: str
    inputs: tuple[InputType, ...]
    attributes: Mapping[str, int | float]
    capability: str
    read: tuple[bool, ...] = ()
    tiles: Tiles = field(default_factory=committed_tiles, repr=False)
    compile: Callable[[Build], Kernel] = compiled
    constant: tuple[bool, ...] = ()

    @property
    def shape(self) -> tuple[Expr | int, ...]:
        """Shape of the first input."""
        return tuple(dim(0, axis) if size is None else size for axis, size in enumerate(self.inputs[0].shape))

    @property
    def width(self) -> int:
        """Last dimension of the first input, which the kernels are compiled for."""
        return static(self, 0, -1)

    @property
    def rows(self) -> Expr:
        """All other dimensions of the first input."""
        rows = constant(1)
        for size in self.shape[:-1]:
            rows = rows * size
        return rows

    def is_read(self, output: int) -> bool:
        return self.read[output] if self.read else True

    def program(self, outputs: tuple[Tensor, ...], variants: tuple[Variant, ...], scratch: tuple[Buffer, ...] = ()) -> Program:
        """A program of these outputs, checked."""
        program = Program(self.inputs, outputs, variants, scratch)
        program.check()
        return program


def static(node: Node, index: int, axis: int) -> int:
    """A dimension that must be known when the plan is built."""
    size = node.inputs[index].shape[axis]
    if size is None or size < 1:
        what = f"dimension {axis} of input {index} is {'dynamic' if size is None else size}"
        raise BuildError(what, where=node.operator, hint="export it with a fixed size")
    return size


def dependent(build: Build) -> Build:
    """With what a kernel must know that waits for the launch before it (operators/kernels/dependent.py)."""
    constants = {"DEPENDENT": build.capability in DEPENDENT}
    return replace(build, constants={**build.constants, **constants})


def expect(node: Node, index: int, *dtypes: str) -> str:
    """Triton's pointer type of an input, which must be of one of the given types."""
    if index >= len(node.inputs):
        raise BuildError(f"it has {len(node.inputs)} inputs, needs {index + 1}", where=node.operator, hint="correct the graph")
    found = node.inputs[index].dtype
    if found not in dtypes:
        raise BuildError(f"input {index} is {found}, must be {' or '.join(dtypes)}", where=node.operator, hint="correct the graph")
    return DTYPES[found].pointer


def expect_size(node: Node, index: int, size: int) -> None:
    """Check the last dimension of an input against what the kernel reads of it."""
    if (found := static(node, index, -1)) != size:
        what = f"the last dimension of input {index} is {found}, must be {size}"
        raise BuildError(what, where=node.operator, hint="correct the graph")


def expect_constant(node: Node, index: int) -> None:
    """Check that no launch writes an input: a kernel reads it before the launch before it is over (operators/kernels/dependent.py)."""
    if node.constant and not node.constant[index]:
        what = f"input {index} is computed in the graph, must be a constant"
        raise BuildError(what, where=node.operator, hint="export weights and their scales as they are multiplied")


def epsilon_of(node: Node) -> float:
    """The attribute `epsilon`."""
    if "epsilon" not in node.attributes:
        raise BuildError("the attribute epsilon is missing", where=node.operator, hint="correct the graph")
    return float(node.attributes["epsilon"])


def row_launch(
    node: Node,
    family: str,
    function: Any,
    types: tuple[str, ...],
    arguments: tuple[Argument, ...],
    constants: Mapping[str, int | bool],
    width: int = 0,
) -> tuple[Variant, ...]:
    """A row kernel in the tile of every row class; `width` is that of a row it keeps, if not the input's."""
    width = width or node.width

    def launches(tile: RowTile) -> tuple[Launch, ...]:
        kernel = node.compile(row_build(function, types, {**constants, "WIDTH": width}, tile, node.capability))
        return (Launch(kernel, (cdiv(node.rows, tile.rows), 1, 1), arguments),)

    return by_rows(node.rows, node.tiles.classes(node.capability, family, (width,)), launches)


def row_build(function: Any, types: tuple[str, ...], constants: Mapping[str, int | bool], tile: RowTile, capability: str) -> Build:
    """How a row kernel is compiled for a tile."""
    cut = {"ROWS": tile.rows, "CHUNK": tile.chunk, "LANES": max(1, tile.warps // tile.rows) * LANES_PER_WARP}
    cut["DEPENDENT"] = capability in DEPENDENT
    cut = {name: value for name, value in cut.items() if name in function.arg_names}
    return Build(
        function.fn.__module__, function.fn.__name__, types, {**constants, **cut}, capability, tile.warps, registers=tile.registers
    )


def early_with_few_rows(program: Program, rows: Expr) -> Program:
    """The program with a second variant of each, whose kernels do not start before the launch before them is over."""

    def in_turn(variant: Variant) -> Variant:
        return replace(variant, launches=tuple(replace(each, kernel=replace(each.kernel, dependent=False)) for each in variant.launches))

    def both(variant: Variant) -> tuple[Variant, ...]:
        if not any(launch.kernel.dependent for launch in variant.launches):
            return (variant,)
        return replace(variant, when=rows.le(EARLY_ROWS) * variant.when), in_turn(variant)

    return replace(program, variants=tuple(chain.from_iterable(map(both, program.variants))))


def by_rows(rows: Expr, classes: list[RowClass], launches: Callable[[Any], tuple[Launch, ...]]) -> tuple[Variant, ...]:
    """Variants by row count; the last serves all that are left."""
    return tuple(Variant(1 if each.max_rows is None else rows.le(each.max_rows), launches(each.tile)) for each in classes)
