"""A kernel at one size: example inputs, dynamic axes, work, tile, and a library to compare with.

Each kernel declares its `KernelCases` beside itself. The tuner, the benchmark and the tests go over them and know no operator by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.dtypes import DTYPES, DType
from ..operator import Attributes
from ..registry import OPERATORS
from .compile import Build, compiled
from .node import Node
from .program import InputType, Kernel
from .tiles import Entry, Tile, Tiles, committed_tiles

MANY_ROWS = 16384  # 32 requests of 512 beams
Fill = Callable[[tuple[int, ...], str], Tensor]
Agreement = Literal["bits", "roundings", "threshold"]


@dataclass(frozen=True)
class Example:
    """An input by example.

    Attributes:
        dtype: Its type.
        shape: Its shape in this case.
        fill: Makes random values of a shape on a device.
        dynamic: Axes that a plan leaves open. Where the first is one, the input has values of every row or request.
    """

    dtype: DType
    shape: tuple[int, ...]
    fill: Fill
    dynamic: tuple[int, ...] = (0,)

    @property
    def type(self) -> InputType:
        """As a node of a plan has it."""
        return InputType(self.dtype, tuple(None if axis in self.dynamic else size for axis, size in enumerate(self.shape)))

    def tensor(self, device: str) -> Tensor:
        """Random values on a device."""
        return self.fill(self.shape, device).to(DTYPES[self.dtype].torch)


def half(*shape: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """FP16, normally distributed."""
    return Example("float16", shape, _normal, dynamic)


def single(*shape: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """FP32, normally distributed."""
    return Example("float32", shape, _normal, dynamic)


def codes(*shape: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """E4M3 codes that use the whole range."""
    return Example("float8_e4m3fn", shape, lambda s, device: _normal(s, device).mul_(100).clamp_(-448, 448), dynamic)


def scales(*shape: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """FP32 scales from 0.001 to 0.011."""
    return Example("float32", shape, lambda s, device: torch.rand(s, device=device).mul_(0.01).add_(0.001), dynamic)


def indices(*shape: int, below: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """INT64 from 0 to `below` - 1."""
    return Example("int64", shape, lambda s, device: torch.randint(below, s, device=device), dynamic)


def equal(*shape: int, value: int, dynamic: tuple[int, ...] = (0,)) -> Example:
    """INT64, all of one value."""
    return Example("int64", shape, lambda s, device: torch.full(s, value, device=device), dynamic)


def _normal(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.float16)


@dataclass(frozen=True)
class TileKey:
    """Under which the tile of a case stands in the table: see `tiles.Entry`."""

    family: str
    rows: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """An operator at one size.

    Attributes:
        operator: Its name.
        inputs: Of its node.
        size: What the label shows, such as rows and channels.
        attributes: Of the node.
        read: Outputs somebody reads. Default: all.
        tile: Its place in the table. Default: the kernel has no tiles.
        requests: Requests in the batch, whose rows depend on each other. Default: every row stands alone.
        flops: Of its products; 0 where the bytes count.
        tolerance: Largest difference from the reference on a GPU, if more than the operator's threshold.
    """

    operator: str
    inputs: tuple[Example, ...]
    size: tuple[int, ...]
    attributes: Attributes = field(default_factory=dict)
    read: tuple[bool, ...] = ()
    tile: TileKey | None = None
    requests: int | None = None
    flops: int = 0
    tolerance: float = 0.0

    @property
    def label(self) -> str:
        """Its size in words."""
        return "x".join(map(str, self.size))

    @property
    def rows(self) -> int:
        """Of the first input."""
        return self.inputs[0].shape[0]

    @property
    def threshold(self) -> float:
        """Largest difference from the reference on a GPU."""
        return max(OPERATORS[self.operator].threshold, self.tolerance)

    def tensors(self, device: str) -> list[Tensor]:
        """Random inputs."""
        return [each.tensor(device) for each in self.inputs]

    def reference(self, inputs: Iterable[Tensor]) -> list[Tensor]:
        """What PyTorch computes of the inputs."""
        return list(OPERATORS[self.operator].reference(*inputs, **self.attributes))

    def node(self, capability: str, tiles: Tiles | None = None, compile_with: Callable[[Build], Kernel] = compiled) -> Node:
        """The node of a plan, its dynamic axes open. `tiles` defaults to the committed table."""
        types = tuple(each.type for each in self.inputs)
        return Node(self.operator, types, self.attributes, capability, self.read, tiles or committed_tiles(), compile_with)

    def entries(self, capability: str, tile: Tile, families: Iterable[str] = ()) -> list[Entry]:
        """The lines of a table that give this case a tile; `families` default to its own."""
        assert self.tile is not None, f"{self.operator} has no tiles"
        return [Entry(capability, name, self.tile.rows, self.tile.shape, tile) for name in families or (self.tile.family,)]


@dataclass(frozen=True)
class Trial:
    """A small case for Triton's interpreter.

    Attributes:
        case: The case.
        tile: The tile to try. Default: the kernel has no tiles.
        inputs: Default: the case's random ones.
        given: What the kernel gets in their place, where it makes no difference.
    """

    case: Case
    tile: Tile | None = None
    inputs: tuple[Tensor, ...] = ()
    given: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Library:
    """Another way to compute an operator. `prepare` takes its inputs and gives the call that is timed."""

    name: str
    prepare: Callable[[list[Tensor]], Callable[[], Any]]


@dataclass(frozen=True)
class Part:
    """Launches of a program, by their numbers, that do one thing of an operator; `flops` are those of its products."""

    name: str
    launches: tuple[int, ...]
    flops: int = 0


@dataclass(frozen=True)
class Measurement:
    """One line of the benchmark.

    Attributes:
        case: The case.
        variant: What distinguishes it from others of its operator and size.
        library: What is timed beside it.
        read_bytes: Bytes of the inputs that must be read. Default: all of them.
        parts: Of its launches, whose kernels' names it is given. Default: none are shown.
    """

    case: Case
    variant: str
    library: Library
    read_bytes: Callable[[list[Tensor]], int] = lambda inputs: sum(each.nbytes for each in inputs)
    parts: Callable[[Sequence[str]], Sequence[Part]] = lambda _kernels: ()


@dataclass(frozen=True)
class Tuning:
    """One search of the tuner: the case that is timed, and the families of the table whose tile it decides."""

    case: Case
    families: tuple[str, ...]


@dataclass(frozen=True)
class KernelCases:
    """Everything that is tried with the kernel of one operator.

    Attributes:
        agreement: How the interpreter's results agree with the reference beyond the operator's threshold: in every bit, in all but a
            few roundings, or no further.
        ragged: Small sizes that no tile divides.
        of_model: Cases of so many rows in a model of so many channels; they are held against the reference on a GPU.
        odd: Other sizes of so many rows.
        tuned: What the tuner searches tiles for.
        candidates: Tiles worth a try for a case and a compute capability. Those that do not compile or fit are left out later.
        measured: What the benchmark shows.
    """

    agreement: Agreement = "threshold"
    ragged: Callable[[], Iterable[Trial]] = tuple
    of_model: Callable[[int, int], Iterable[Case]] = lambda _rows, _width: ()
    odd: Callable[[int], Iterable[Case]] = lambda _rows: ()
    tuned: Callable[[], Iterable[Tuning]] = tuple
    candidates: Callable[[Case, str], Iterable[Tile]] = lambda _case, _capability: ()
    measured: Callable[[], Iterable[Measurement]] = tuple


def compiled_reference(case: Case) -> Library:
    """The operator's reference by torch.compile, without the outputs at the end that nobody reads."""
    reference = OPERATORS[case.operator].reference
    count = len(case.read) - 1 if case.read and not case.read[-1] else None

    def read_outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        return reference(*inputs, **case.attributes)[:count]

    fused = torch.compile(read_outputs, dynamic=False)
    return Library("torch.compile", lambda inputs: lambda: fused(*inputs))
