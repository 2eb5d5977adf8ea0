"""Integer expressions over the dimensions of a program's inputs: built in Python, evaluated here and in the plugin host.

Both evaluate in 64 bits; what overflows or divides by zero is an error in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ...core.errors import BuildError

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
MAX_OPERANDS = 64  # values that wait on the host's stack at one time


class Op(IntEnum):
    """The host's instructions; each has a counterpart in TensorRT's IExprBuilder. The numbers are part of the program format."""

    CONSTANT = 0
    DIMENSION = 1
    ADD = 2
    SUBTRACT = 3
    MULTIPLY = 4
    FLOOR_DIVIDE = 5
    CEIL_DIVIDE = 6
    MINIMUM = 7
    MAXIMUM = 8
    LESS = 9


Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Expr:
    """A 64-bit integer computed from dimensions: `dim`, constants, + - * // %, `cdiv`, `minimum`, `maximum`, `lt`, `le`.

    The methods `lt` and `le` give 0 or 1; `==` compares the expressions themselves.

    Attributes:
        op: What is computed.
        operands: Two expressions, or none.
        values: The constant's value, or the dimension's input and axis.
    """

    op: Op
    operands: tuple[Expr, ...] = ()
    values: tuple[int, ...] = ()

    def __add__(self, other: Expr | int) -> Expr:
        return _binary(Op.ADD, self, other)

    def __radd__(self, other: int) -> Expr:
        return _binary(Op.ADD, other, self)

    def __sub__(self, other: Expr | int) -> Expr:
        return _binary(Op.SUBTRACT, self, other)

    def __rsub__(self, other: int) -> Expr:
        return _binary(Op.SUBTRACT, other, self)

    def __mul__(self, other: Expr | int) -> Expr:
        return _binary(Op.MULTIPLY, self, other)

    def __rmul__(self, other: int) -> Expr:
        return _binary(Op.MULTIPLY, other, self)

    def __floordiv__(self, other: Expr | int) -> Expr:
        return _binary(Op.FLOOR_DIVIDE, self, other)

    def __rfloordiv__(self, other: int) -> Expr:
        return _binary(Op.FLOOR_DIVIDE, other, self)

    def __mod__(self, other: Expr | int) -> Expr:
        return self - self // other * other

    def __rmod__(self, other: int) -> Expr:
        return other - other // self * self

    def lt(self, other: Expr | int) -> Expr:
        return _binary(Op.LESS, self, other)

    def le(self, other: Expr | int) -> Expr:
        return 1 - _binary(Op.LESS, other, self)

    def __bool__(self) -> bool:
        raise TypeError("an expression has no value yet: compare with .lt() or .le(); choose with Variant")

    def evaluate(self, shapes: Shapes) -> int:
        """The value for the given shapes of the inputs.

        Raises:
            BuildError: It overflows 64 bits or divides by zero.
        """
        if self.op is Op.CONSTANT:
            return self.values[0]
        if self.op is Op.DIMENSION:
            return shapes[self.values[0]][self.values[1]]
        first, second = (operand.evaluate(shapes) for operand in self.operands)
        return _compute(self.op, first, second)

    def dimensions(self) -> frozenset[tuple[int, int]]:
        """Every (input, axis) it depends on."""
        own = {self.values} if self.op is Op.DIMENSION else set()
        return frozenset({(input_index, axis) for input_index, axis in own}).union(*(o.dimensions() for o in self.operands))

    def depth(self) -> int:
        """Values that wait at one time while it is computed, operands before operators."""
        return max((number + operand.depth() for number, operand in enumerate(self.operands)), default=1)

    def never_shrinks(self) -> bool:
        """Whether it can be seen to stay or grow when dimensions grow, so that its value at the largest shape is its largest."""
        if not self.operands:
            return self.op is Op.DIMENSION or self.values[0] >= 0
        first, second = self.operands
        if self.op in (Op.FLOOR_DIVIDE, Op.CEIL_DIVIDE):
            return first.never_shrinks() and second.op is Op.CONSTANT and second.values[0] > 0
        return self.op in (Op.ADD, Op.MULTIPLY, Op.MINIMUM, Op.MAXIMUM) and first.never_shrinks() and second.never_shrinks()


def constant(value: int) -> Expr:
    """An expression with a fixed value."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"not an integer or an expression: {value!r}; `==` compares expressions, .lt() and .le() their values")
    return Expr(Op.CONSTANT, values=(_bounded(value),))


def dim(input_index: int, axis: int) -> Expr:
    """A dimension of an input; `axis` counts from 0."""
    assert input_index >= 0, "inputs count from 0"
    assert axis >= 0, "axes count from 0"
    return Expr(Op.DIMENSION, values=(input_index, axis))


def as_expr(value: Expr | int) -> Expr:
    """Expressions as they are, integers as constants."""
    return value if isinstance(value, Expr) else constant(value)


def cdiv(dividend: Expr | int, divisor: Expr | int) -> Expr:
    """The quotient, rounded up."""
    return _binary(Op.CEIL_DIVIDE, dividend, divisor)


def minimum(first: Expr | int, second: Expr | int) -> Expr:
    """The smaller of two."""
    return _binary(Op.MINIMUM, first, second)


def maximum(first: Expr | int, second: Expr | int) -> Expr:
    """The larger of two."""
    return _binary(Op.MAXIMUM, first, second)


def _binary(op: Op, first: Expr | int, second: Expr | int) -> Expr:
    operands = (as_expr(first), as_expr(second))
    if all(operand.op is Op.CONSTANT for operand in operands):
        return constant(_compute(op, *(operand.values[0] for operand in operands)))
    return Expr(op, operands)


def _compute(op: Op, first: int, second: int) -> int:
    if op in (Op.FLOOR_DIVIDE, Op.CEIL_DIVIDE) and second == 0:
        raise BuildError("an expression of a kernel program divides by zero")
    match op:
        case Op.ADD:
            value = first + second
        case Op.SUBTRACT:
            value = first - second
        case Op.MULTIPLY:
            value = first * second
        case Op.FLOOR_DIVIDE:
            value = first // second
        case Op.CEIL_DIVIDE:
            value = -(-first // second)
        case Op.MINIMUM:
            value = min(first, second)
        case Op.MAXIMUM:
            value = max(first, second)
        case _:
            assert op is Op.LESS, f"{op.name} has no operands"
            value = int(first < second)
    return _bounded(value)


def _bounded(value: int) -> int:
    if not LOWEST <= value <= HIGHEST:
        raise BuildError(f"an expression of a kernel program overflows 64 bits: {value}")
    return value
