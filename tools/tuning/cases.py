"""Operators with kernels at the shapes that are tuned and measured: inputs on the GPU, work, and the check against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ...core.dtypes import of_torch
from ...core.errors import GateError, GpuError
from ...operators import fp8
from ...operators.beam_step import beam_groups
from ...operators.kernels.registry import FACTORIES
from ...operators.launch.compile import Build, compiled
from ...operators.launch.launch import execute
from ...operators.launch.node import Node
from ...operators.launch.program import InputType, Kernel, Program
from ...operators.launch.tiles import Tiles, committed_tiles
from ...operators.operator import Attributes
from ...operators.registry import OPERATORS
from ...operators.single_node import as_arrays

DISTINCT_BYTES = 200 << 20  # inputs and outputs in rotation; the L2 cache of an H200 holds 60 MB
MIN_COPIES = 3
CHECKED_ROWS = 256
CHECKED_REQUESTS = 4
STEP_CHANNELS = 32  # that an FP8 tensor core instruction adds to the accumulator at a time
STEP_LOSS = 2.0**-12  # of the sum, at most, in each of them
DEVICE = "cuda"
EPSILON: Attributes = {"epsilon": 1e-6}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float16)


def codes(*shape: int) -> Tensor:
    return normal(*shape).mul_(100).clamp_(-448, 448).to(fp8.E4M3)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, device=DEVICE).mul_(0.01).add_(0.001)


def _linear(rows: int, k: int, n: int) -> list[Tensor]:
    return [normal(rows, k), normal(n, k)]


def _fp8_linear(rows: int, k: int, n: int) -> list[Tensor]:
    return [codes(rows, k), positive(rows, 1), codes(n, k), positive(n)]


def _context_attention(rows: int, beam: int, heads: int, groups: int, tokens: int, head: int) -> list[Tensor]:
    """Every context fills its tokens."""
    requests = rows // beam
    context = (requests, groups, tokens, head)
    return [normal(rows, heads * head), normal(*context), normal(*context), torch.full((requests,), tokens, device=DEVICE)]


def _beam_self_attention(rows: int, beam: int, heads: int, head: int) -> list[Tensor]:
    width = 3 * heads * head
    return [normal(rows, width), normal(rows // beam, width)]


def _beam_self_attention_2(rows: int, beam: int, heads: int, head: int) -> list[Tensor]:
    parent = torch.randint(beam, (rows // beam, beam), device=DEVICE)
    return [*_beam_self_attention(rows, beam, heads, head), normal(rows, 3 * heads * head), parent]


def _beam_step(rows: int, beam: int, vocabulary: int) -> list[Tensor]:
    """Scores as a step before leaves them: best first."""
    return [normal(rows, vocabulary), torch.rand(rows // beam, beam, device=DEVICE).mul_(-10).sort(dim=1, descending=True).values]


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
    "ContextAttention": _context_attention,
    "BeamSelfAttention1": _beam_self_attention,
    "BeamSelfAttention2": _beam_self_attention_2,
    "BeamStep": _beam_step,
}


@dataclass(frozen=True)
class OperatorCase:
    """An operator at one shape.

    Attributes:
        operator: Its name.
        rows: Rows of its first input.
        shape: (width,), for SwiGLU that of its result; (K, N); or what the functions below put there that make cases of requests.
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
        """Shape in words: rows x width of the input, M x K x N, requests x heads x beam x tokens x channels of a head, or
        requests x beam x codebook.
        """
        shape: tuple[int, ...] = (self.rows, *self.shape)
        if self.operator.startswith("SwiGlu"):
            shape = (self.rows, 2 * self.shape[0])
        elif self.operator == "ContextAttention":
            beam, heads, _, tokens, head = self.shape
            shape = (self.rows // beam, heads, beam, tokens, head)
        elif self.is_attention:
            shape = (self.rows, self.shape[1] * self.shape[2])
        elif self.operator == "BeamStep":
            shape = (self.requests, *self.shape)
        return "x".join(map(str, shape))

    @property
    def is_attention(self) -> bool:
        return "Attention" in self.operator

    @property
    def is_by_request(self) -> bool:
        """Whether its unit is a request of `shape[0]` rows."""
        return self.is_attention or self.operator == "BeamStep"

    @property
    def requests(self) -> int:
        """Of an operator whose unit is one."""
        return self.rows // self.shape[0]

    @property
    def flops(self) -> int:
        """Of products; 0 where the bytes count."""
        if self.operator == "ContextAttention":
            _, heads, _, tokens, head = self.shape
            return 4 * self.rows * heads * tokens * head
        return 2 * self.rows * math.prod(self.shape) if "Linear" in self.operator else 0

    @property
    def tile_rows(self) -> int:
        """Rows under which its tile stands in the table."""
        if self.operator == "ContextAttention":
            beam, heads, groups, _, _ = self.shape
            return beam * heads // groups
        return self.rows

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Shape under which its tile stands in the table."""
        return self.shape[-1:] if self.operator == "ContextAttention" else self.shape

    @property
    def threshold(self) -> float:
        """Largest difference from PyTorch: the operator's own, or what an FP8 accumulator that is never promoted loses, if that is more.

        Hopper's keeps 13 bits behind the leading one (arXiv 2412.19437, section 3.3.2): each step loses at most the last of them,
        2^-13 to 2^-12 of the sum. Losses of random products are independent, so their squares add up; the metric is half of that.
        """
        own = OPERATORS[self.operator].threshold
        if self.attributes.get("promotion") != 0:
            return own
        return max(own, self.shape[0] / STEP_CHANNELS * STEP_LOSS**2 / 2)

    def inputs(self) -> list[Tensor]:
        """Random inputs on the GPU."""
        return INPUTS[self.operator](self.rows, *self.shape)

    def program(self, capability: str, tiles: Tiles | None = None, compile_with: Callable[[Build], Kernel] = compiled) -> Program:
        """The launch program of the node with a dynamic number of rows. `tiles` defaults to the committed table."""
        node = Node(
            self.operator,
            _types(self.operator, self.shape, DEVICE),
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
        """Largest difference between the program and the PyTorch reference, over rows spread across the input.

        Raises:
            GateError: It is above the threshold.
        """
        truth, inputs = OPERATORS[self.operator], self.inputs()
        chosen, rows = self._sampled(inputs)
        expected = as_arrays([t.cpu() for t in truth.reference(*chosen, **self.attributes)])
        actual = as_arrays([output[rows].cpu() for output in execute(program, inputs)])
        actual += expected[len(actual) :]  # outputs that nobody reads are not made
        difference = truth.compare(actual, expected, as_arrays([tensor.cpu() for tensor in chosen]), self.attributes)
        if difference > self.threshold:
            where = f"{self.operator} {self.label} {self.attributes}"
            raise GateError(f"the kernel differs from PyTorch by {difference:.2g}, at most {self.threshold:.2g}", where=where)
        return difference

    def _sampled(self, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Inputs of rows, or of whole requests, spread across the batch and ending with its last; and their rows in the outputs."""
        unit, most = (self.shape[0], CHECKED_REQUESTS) if self.is_by_request else (1, CHECKED_ROWS)
        count = self.rows // unit
        step = max(1, count // most) | (not self.is_by_request)  # odd for rows: all places of a tile come in turn
        units = slice((count - 1) % step, None, step)

        def of_units(tensor: Tensor) -> Tensor:
            chosen: Tensor = tensor.unflatten(0, (count, -1))[units]
            return chosen.flatten(0, 1)

        def by_rows(index: int, tensor: Tensor) -> bool:
            return self.is_by_request or (tensor.dim() == 2 and len(tensor) == self.rows and not self._is_weight(index))

        rows = of_units(torch.arange(self.requests if self.operator == "BeamStep" else self.rows, device=DEVICE))
        return [of_units(t) if by_rows(n, t) else t for n, t in enumerate(inputs)], rows

    def _is_weight(self, index: int) -> bool:
        return "Linear" in self.operator and index == (2 if self.operator.startswith("Fp8") else 1)


def context_attention_case(requests: int, beam: int, heads: int, groups: int, tokens: int, head: int) -> OperatorCase:
    """Rows of `requests` beams over contexts of `tokens`, all of them valid."""
    return OperatorCase("ContextAttention", requests * beam, (beam, heads, groups, tokens, head), {"rows": beam})


def beam_attention_case(operator: str, requests: int, beam: int, heads: int, head: int) -> OperatorCase:
    """BeamSelfAttention1 or 2, where as many beams lived in the step before."""
    return OperatorCase(operator, requests * beam, (beam, heads, head), {"rows": beam, "heads": heads})


def beam_step_case(requests: int, beam: int, codebook: int, width: int) -> OperatorCase:
    """The `width` best of all candidates of `beam` rows."""
    return OperatorCase("BeamStep", requests * beam, (beam, codebook), {**beam_groups(beam, codebook, width)})


@cache
def _types(operator: str, shape: tuple[int, ...], _device: str) -> tuple[InputType, ...]:
    """Types of the inputs with a dynamic number of rows, requests and tokens, read off inputs of two rows or requests."""
    by_request = "Attention" in operator or operator == "BeamStep"
    rows = 2 * shape[0] if by_request else 2

    def dynamic(number: int, tensor: Tensor, axis: int) -> bool:
        if by_request:
            return axis == 0 or (tensor.dim() == 4 and axis == 2)
        return axis == 0 and (number == 0 or (tensor.dim() == 2 and tensor.shape[0] == rows))

    def type_of(number: int, tensor: Tensor) -> InputType:
        return InputType(
            of_torch(tensor.dtype).name, tuple(None if dynamic(number, tensor, n) else size for n, size in enumerate(tensor.shape))
        )

    return tuple(type_of(number, tensor) for number, tensor in enumerate(INPUTS[operator](rows, *shape)))


def copies_of(bytes_of_one: int) -> int:
    """How many sets of tensors rotate, so that none is in the L2 cache when its turn comes."""
    return max(MIN_COPIES, -(-DISTINCT_BYTES // bytes_of_one))


def this_capability() -> str:
    """Compute capability of the GPU at hand.

    Raises:
        GpuError: There is none.
    """
    if not torch.cuda.is_available():
        raise GpuError("CUDA finds no usable GPU", hint="look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES")
    return "{}.{}".format(*torch.cuda.get_device_capability())
