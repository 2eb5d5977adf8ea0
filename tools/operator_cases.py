"""Operators with kernels at the shapes that are tuned and measured: inputs on the GPU, work, and the check against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ..core.errors import GateError, GpuError
from ..operators import fp8
from ..operators.kernels.compile import Build, compiled
from ..operators.kernels.factories import FACTORIES
from ..operators.kernels.factory import Node
from ..operators.kernels.launch import DTYPES, execute
from ..operators.kernels.program import DType, InputType, Kernel, Program
from ..operators.kernels.tiles import Tiles, committed_tiles
from ..operators.operator import Attributes
from ..operators.registry import OPERATORS
from ..operators.single_node import as_arrays

DISTINCT_BYTES = 200 << 20  # inputs and outputs in rotation; the L2 cache of an H200 holds 60 MB
LEAST_COPIES = 3
CHECKED_ROWS = 256
STEP_CHANNELS = 32  # of an FP8 tensor core instruction
ACCUMULATOR_UNIT = 2.0**-13
NAMES: dict[torch.dtype, DType] = {DTYPES[name]: name for name in ("float16", "float32", "float8_e4m3fn")}
EPSILON: Attributes = {"epsilon": 1e-6}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.float16)


def codes(*shape: int) -> Tensor:
    return normal(*shape).mul_(100).clamp_(-448, 448).to(fp8.E4M3)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, device="cuda").mul_(0.01).add_(0.001)


def _linear(rows: int, k: int, n: int) -> list[Tensor]:
    return [normal(rows, k), normal(n, k)]


def _fp8_linear(rows: int, k: int, n: int) -> list[Tensor]:
    return [codes(rows, k), positive(rows, 1), codes(n, k), positive(n)]


INPUTS: dict[str, Callable[..., list[Tensor]]] = {
    "RmsNorm": lambda rows, d: [normal(rows, d), normal(d)],
    "RmsNormQuantTensor": lambda rows, d: [normal(rows, d), normal(d), positive(1)],
    "RmsNormQuantRow": lambda rows, d: [normal(rows, d), normal(d)],
    "RmsNormQuantBlock": lambda rows, d: [normal(rows, d), normal(d)],
    "QuantTensor": lambda rows, d: [normal(rows, d), positive(1)],
    "QuantRow": lambda rows, d: [normal(rows, d)],
    "SwiGlu": lambda rows, h: [normal(rows, 2 * h)],
    "SwiGluQuantTensor": lambda rows, h: [normal(rows, 2 * h), positive(1)],
    "SwiGluQuantRow": lambda rows, h: [normal(rows, 2 * h)],
    "Linear": _linear,
    "LinearAdd": lambda rows, k, n: [*_linear(rows, k, n), normal(rows, n)],
    "Fp8Linear": _fp8_linear,
    "Fp8LinearAdd": lambda rows, k, n: [*_fp8_linear(rows, k, n), normal(rows, n)],
}


@dataclass(frozen=True)
class OperatorCase:
    """An operator at one shape.

    Attributes:
        operator: Its name.
        rows: Rows of its first input.
        shape: (width,), for SwiGLU that of its result, or (K, N).
        attributes: Of the node.
        read: Outputs somebody reads. Default: all.
    """

    operator: str
    rows: int
    shape: tuple[int, ...]
    attributes: Attributes = field(default_factory=dict)
    read: tuple[bool, ...] = ()

    @property
    def label(self) -> str:
        """Shape in words: rows x width of the input, or M x K x N."""
        shape = (2 * self.shape[0],) if self.operator.startswith("SwiGlu") else self.shape
        return "x".join(map(str, (self.rows, *shape)))

    @property
    def flops(self) -> int:
        """Of a product; 0 where the bytes count."""
        return 2 * self.rows * math.prod(self.shape) if "Linear" in self.operator else 0

    def inputs(self) -> list[Tensor]:
        """Random inputs on the GPU."""
        return INPUTS[self.operator](self.rows, *self.shape)

    def program(self, capability: str, tiles: Tiles | None = None, compile_with: Callable[[Build], Kernel] = compiled) -> Program:
        """The launch program of the node with a dynamic number of rows. `tiles` defaults to the committed table."""
        node = Node(
            self.operator,
            _types(self.operator, self.shape),
            self.attributes,
            capability,
            self.read,
            tiles or committed_tiles(),
            compile_with,
        )
        program = FACTORIES[self.operator].program(node)
        assert program is not None, f"{self.operator} has no kernel"
        return program

    def difference(self, program: Program) -> float:
        """Largest difference between the program and the PyTorch meaning, over rows spread across the input.

        Raises:
            GateError: It is above the threshold.
        """
        truth, inputs = OPERATORS[self.operator], self.inputs()
        step = max(1, self.rows // CHECKED_ROWS)
        rows = slice((self.rows - 1) % step, None, step)  # ends with the last row
        chosen = [t[rows] if t.dim() == 2 and len(t) == self.rows and not self._is_weight(n) else t for n, t in enumerate(inputs)]
        expected = as_arrays([t.cpu() for t in truth.meaning(*chosen, **self.attributes)])
        actual = as_arrays([output[rows].cpu() for output in execute(program, inputs)])
        actual += expected[len(actual) :]  # outputs that nobody reads are not made
        difference = truth.compare(actual, expected, [], self.attributes)
        if difference > self.threshold:
            where = f"{self.operator} {self.label} {self.attributes}"
            raise GateError(f"the kernel differs from PyTorch by {difference:.2g}, at most {self.threshold:.2g}", where=where)
        return difference

    @property
    def threshold(self) -> float:
        """The operator's own; where an FP8 product is never promoted, what the tensor core's accumulator may lose, if that is more.

        The PyTorch meaning accumulates in FP32. Hopper keeps about 14 bits (arXiv 2412.19437, section 3.3.2): at most one unit
        of 2^-13 in each step of 32 channels, and the metric is half of the squared relative error.
        """
        own = OPERATORS[self.operator].threshold
        if self.attributes.get("promotion") != 0:
            return own
        return max(own, (self.shape[0] / STEP_CHANNELS * ACCUMULATOR_UNIT) ** 2 / 2)

    def _is_weight(self, index: int) -> bool:
        return "Linear" in self.operator and index == (2 if self.operator.startswith("Fp8") else 1)


@cache
def _types(operator: str, shape: tuple[int, ...]) -> tuple[InputType, ...]:
    """Types of the inputs with a dynamic number of rows, read off inputs of two rows."""
    two = INPUTS[operator](2, *shape)
    by_rows = [number == 0 or (tensor.dim() == 2 and tensor.shape[0] == 2) for number, tensor in enumerate(two)]
    return tuple(InputType(NAMES[t.dtype], (None if by else t.shape[0], *t.shape[1:])) for t, by in zip(two, by_rows, strict=True))


def copies_of(bytes_of_one: int) -> int:
    """How many sets of tensors rotate, so that none is in the L2 cache when its turn comes."""
    return max(LEAST_COPIES, -(-DISTINCT_BYTES // bytes_of_one))


def this_capability() -> str:
    """Compute capability of the GPU at hand.

    Raises:
        GpuError: There is none.
    """
    if not torch.cuda.is_available():
        raise GpuError("CUDA finds no usable GPU", hint="look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES")
    return "{}.{}".format(*torch.cuda.get_device_capability())
