"""A launch program: which kernels run for one node of a plan, on which grids, with which arguments, for which dimensions.

It says nothing about how a kernel is made; `encoding.py` writes it into the bytes that the plugin host reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.dtypes import DTYPES, DType
from ...core.errors import BuildError
from .expression import MAX_OPERANDS, Expr, Shapes, as_expr, cdiv, constant, dim, maximum, minimum

__all__ = [
    "Argument",
    "Buffer",
    "DType",
    "Expr",
    "Float32",
    "Input",
    "InputType",
    "Int32",
    "Int64",
    "Kernel",
    "Launch",
    "Output",
    "Program",
    "Scratch",
    "Tensor",
    "Variant",
    "cdiv",
    "constant",
    "dim",
    "maximum",
    "minimum",
]

# Limits of the host.
MAX_TENSORS = 64
MAX_ARGUMENTS = 64
MAX_WARPS = 32
MAX_DIMENSIONS = 8  # TensorRT's limit
MAX_SHARED_BYTES = 1 << 20  # beyond any GPU: a typing error, not a kernel


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        cubin: The loadable image for one compute capability.
        entry: Name of the kernel in it.
        warps: Warps per thread block, 32 threads each.
        shared_bytes: Dynamic shared memory per thread block.
        global_scratch_bytes: Bytes per thread block that Triton's hidden argument asks for (descriptors made on the device).
        profile_scratch_bytes: Likewise for its profiler.
        dependent: Whether it is started while the launch before it still runs, for which it then waits by itself.
    """

    cubin: bytes
    entry: str
    warps: int
    shared_bytes: int
    global_scratch_bytes: int
    profile_scratch_bytes: int = 0
    dependent: bool = False


@dataclass(frozen=True)
class Input:
    """Address of an input of the node."""

    index: int


@dataclass(frozen=True)
class Output:
    """Address of an output of the node."""

    index: int


@dataclass(frozen=True)
class Scratch:
    """Address of a scratch buffer."""

    index: int


@dataclass(frozen=True)
class Int32:
    """A 32-bit integer; a value that does not fit is refused when it is computed."""

    value: Expr | int


@dataclass(frozen=True)
class Int64:
    """A 64-bit integer."""

    value: Expr | int


@dataclass(frozen=True)
class Float32:
    """A constant, rounded to FP32."""

    value: float


Argument = Input | Output | Scratch | Int32 | Int64 | Float32


@dataclass(frozen=True)
class Launch:
    """One launch. The host appends the addresses of the two hidden scratch regions to the arguments, null where none is asked for.

    A grid with a zero launches nothing.
    """

    kernel: Kernel
    grid: tuple[Expr | int, Expr | int, Expr | int]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Variant:
    """Launches in order, for the dimensions at which `when` is not zero."""

    when: Expr | int
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class InputType:
    """What an input must be. A dimension of None is any; a number is what the kernels were compiled for."""

    dtype: DType
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """An output: its type, and its shape in terms of the inputs' dimensions."""

    dtype: DType
    shape: tuple[Expr | int, ...]


@dataclass(frozen=True)
class Buffer:
    """Scratch memory that lives during one execution, 256-byte aligned. Its content is undefined unless `clear` fills it with zeros."""

    bytes: Expr | int
    clear: bool = False


@dataclass(frozen=True)
class Program:
    """What one node runs: the first variant whose condition holds."""

    inputs: tuple[InputType, ...]
    outputs: tuple[Tensor, ...]
    variants: tuple[Variant, ...]
    scratch: tuple[Buffer, ...] = ()

    def check(self) -> None:
        """Refuse what the host could not run.

        Raises:
            BuildError: Says which part is wrong.
        """
        _require(bool(self.outputs), "a program has no outputs")
        most = max(len(self.inputs), len(self.outputs), len(self.scratch))
        _require(most <= MAX_TENSORS, f"a program has {most} inputs, outputs or scratch buffers, the most are {MAX_TENSORS}")
        ranks = [*(len(tensor.shape) for tensor in self.inputs), *(len(tensor.shape) for tensor in self.outputs)]
        _require(max(ranks) <= MAX_DIMENSIONS, f"a tensor has {max(ranks)} dimensions, the most are {MAX_DIMENSIONS}")
        dtypes = {tensor.dtype for tensor in self.inputs} | {tensor.dtype for tensor in self.outputs}
        _require(all(DTYPES[dtype].host is not None for dtype in dtypes), f"no kernel takes one of the types {sorted(dtypes)}")
        _require(all(d is None or d >= 0 for t in self.inputs for d in t.shape), "an input has a negative dimension")
        for expression in [d for output in self.outputs for d in output.shape]:
            self._check_expression(expression)
        for number, buffer in enumerate(self.scratch):
            self._check_expression(buffer.bytes)
            _require(
                as_expr(buffer.bytes).never_shrinks(), f"scratch {number} may be largest at a smaller shape: write it without -, < and =="
            )
        _require(bool(self.variants), "a program has no variants")
        for variant in self.variants:
            self._check_expression(variant.when)
            for launch in variant.launches:
                self._check_launch(launch)

    def _check_launch(self, launch: Launch) -> None:
        kernel = launch.kernel
        _require(bool(kernel.cubin) and bool(kernel.entry), "a kernel has no cubin or no name")
        _require(1 <= kernel.warps <= MAX_WARPS, f"{kernel.entry}: {kernel.warps} warps, must be 1 to {MAX_WARPS}")
        _require(0 <= kernel.shared_bytes <= MAX_SHARED_BYTES, f"{kernel.entry}: {kernel.shared_bytes} bytes of shared memory")
        _require(len(launch.arguments) <= MAX_ARGUMENTS, f"{kernel.entry}: more than {MAX_ARGUMENTS} arguments")
        hidden = (kernel.global_scratch_bytes, kernel.profile_scratch_bytes)
        _require(0 <= min(hidden) <= max(hidden) < 1 << 32, f"{kernel.entry}: impossible hidden scratch")
        for expression in launch.grid:
            self._check_expression(expression)
            fixed = any(hidden) and not as_expr(expression).never_shrinks()
            _require(not fixed, f"{kernel.entry}: its grid decides the size of its scratch and may be largest at a smaller shape")
        counts = {Input: len(self.inputs), Output: len(self.outputs), Scratch: len(self.scratch)}
        for argument in launch.arguments:
            if isinstance(argument, Int32 | Int64):
                self._check_expression(argument.value)
            elif not isinstance(argument, Float32):
                kind = type(argument)
                _require(0 <= argument.index < counts[kind], f"{kernel.entry}: there is no {kind.__name__}({argument.index})")

    def _check_expression(self, value: Expr | int) -> None:
        expression = as_expr(value)
        _require(expression.depth() <= MAX_OPERANDS, f"an expression is nested deeper than {MAX_OPERANDS}")
        for number, axis in expression.dimensions():
            known = number < len(self.inputs) and axis < len(self.inputs[number].shape)
            _require(known, f"an expression asks for dim({number}, {axis}), which no input has")

    def output_shapes(self, shapes: Shapes) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs for the given shapes of the inputs."""
        return tuple(evaluated(output.shape, shapes) for output in self.outputs)

    def variant(self, shapes: Shapes) -> Variant:
        """The variant that runs for the given shapes of the inputs.

        Raises:
            BuildError: None does.
        """
        for variant in self.variants:
            if as_expr(variant.when).evaluate(shapes) != 0:
                return variant
        raise BuildError(f"no variant of the kernel program is for the shapes {[list(shape) for shape in shapes]}")


def evaluated(values: Sequence[Expr | int], shapes: Shapes) -> tuple[int, ...]:
    """The values of several expressions."""
    return tuple(as_expr(value).evaluate(shapes) for value in values)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise BuildError(what, where="kernel program", hint="correct the operator's kernel factory")
