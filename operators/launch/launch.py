"""Launch programs run on PyTorch tensors through the CUDA driver: what the plugin host does in a plan, for tests and measurements."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...core.dtypes import DTYPES
from ...core.errors import BuildError, GpuError
from .program import Argument, Float32, Input, Int32, Int64, Kernel, Launch, Output, Program, Scratch, evaluated

WARP = 32
DEFAULT_SHARED = 48 << 10  # bytes a block may have unasked
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
Run = Callable[[], None]


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("number", ctypes.c_int), ("padding", ctypes.c_char * 4), ("value", ctypes.c_int * 16))


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("x", "y", "z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@dataclass(frozen=True)
class Tensors:
    """The memory of one bound program."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    scratch: Sequence[Tensor] = ()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the inputs, over which a program's expressions are evaluated."""
        return [tuple(tensor.shape) for tensor in self.inputs]


def new_outputs(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialized outputs for the given inputs."""
    shapes = program.output_shapes([tuple(tensor.shape) for tensor in inputs])
    return [torch.empty(s, dtype=DTYPES[o.dtype].torch, device="cuda") for o, s in zip(program.outputs, shapes, strict=True)]


def new_scratch(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialized scratch buffers for the given inputs, as bytes."""
    return [_buffer(size) for size in evaluated([each.bytes for each in program.scratch], [tuple(tensor.shape) for tensor in inputs])]


def bind(program: Program, inputs: Sequence[Tensor], outputs: Sequence[Tensor], scratch: Sequence[Tensor] | None = None) -> Run:
    """A call that launches the program on these tensors, on PyTorch's current stream; it may be captured in a CUDA graph.

    Everything is loaded, computed and allocated here; the call only clears scratch and launches, in order.

    Args:
        program: What runs.
        inputs: Contiguous tensors on the GPU. A kernel may read weights and their scales before it waits for the launch before it
            (docs/kernels/README.md#starting-early), so nothing that still runs may write them.
        outputs: Likewise; `new_outputs` makes them.
        scratch: Buffers of `new_scratch`, for callers that look into them. Default: the call's own.

    Raises:
        BuildError: No variant is for these shapes, or a value overflows.
        GpuError: The driver refuses a kernel.
    """
    scratch = new_scratch(program, inputs) if scratch is None else scratch
    dtypes = [*(each.dtype for each in program.inputs), *(each.dtype for each in program.outputs)]
    for tensor, dtype in zip((*inputs, *outputs), dtypes, strict=True):
        assert tensor.is_cuda, tensor.device
        assert tensor.is_contiguous(), tensor.stride()
        assert tensor.dtype == DTYPES[dtype].torch, (tensor.dtype, dtype)
    cleared = [tensor for tensor, buffer in zip(scratch, program.scratch, strict=True) if buffer.clear]
    tensors = Tensors(inputs, outputs, scratch)
    launches = [_bind(launch, tensors) for launch in program.variant(tensors.shapes).launches]

    def run() -> None:
        for tensor in cleared:
            tensor.zero_()
        for launch in launches:
            launch()

    return run


def execute(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a program once."""
    outputs = new_outputs(program, inputs)
    bind(program, inputs, outputs)()
    return outputs


def _bind(launch: Launch, tensors: Tensors) -> Run:
    kernel = launch.kernel
    grid = evaluated(launch.grid, tensors.shapes)
    if 0 in grid:
        return lambda: None
    blocks = grid[0] * grid[1] * grid[2]
    hidden = [_buffer(size * blocks) for size in (kernel.global_scratch_bytes, kernel.profile_scratch_bytes)]
    values = [_value(argument, tensors) for argument in launch.arguments]
    values += [ctypes.c_void_p(tensor.data_ptr()) for tensor in hidden]  # null for an empty tensor
    addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    function, driver = _loaded(kernel, torch.cuda.current_device()), _driver()
    attributes = (_Attribute * 1)(_Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, b"", (ctypes.c_int * 16)(1)))
    kept = (values, hidden, tensors)  # what the launch points to lives as long as it

    def run() -> None:
        assert kept
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        config = _Configuration(*grid, kernel.warps * WARP, 1, 1, kernel.shared_bytes, stream, attributes, kernel.dependent)
        _check(driver.cuLaunchKernelEx(ctypes.byref(config), function, addresses, None))

    return run


def _buffer(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _value(argument: Argument, tensors: Tensors) -> Any:
    match argument:
        case Input(index):
            return ctypes.c_void_p(tensors.inputs[index].data_ptr())
        case Output(index):
            return ctypes.c_void_p(tensors.outputs[index].data_ptr())
        case Scratch(index):
            return ctypes.c_void_p(tensors.scratch[index].data_ptr())
        case Int32(value):
            return ctypes.c_int32(_in_32_bits(evaluated([value], tensors.shapes)[0]))
        case Int64(value):
            return ctypes.c_int64(evaluated([value], tensors.shapes)[0])
        case Float32(value):
            return ctypes.c_float(value)


def _in_32_bits(value: int) -> int:
    """As the host, which refuses what ctypes would cut off."""
    if not -(1 << 31) <= value < 1 << 31:
        raise BuildError(f"a 32-bit argument of a kernel program overflows: {value}")
    return value


@cache
def _loaded(kernel: Kernel, _device: int) -> ctypes.c_void_p:
    """The kernel's handle in the current context; modules stay loaded."""
    torch.cuda.current_stream().synchronize()  # PyTorch has made its context current by now
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuModuleLoadData(ctypes.byref(module), kernel.cubin))
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.entry.encode()))
    if kernel.shared_bytes > DEFAULT_SHARED:
        _check(driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, kernel.shared_bytes))
    return function


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise GpuError("there is no NVIDIA driver", hint="run this on a machine with an NVIDIA GPU") from error


def _check(result: int) -> None:
    if result != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise GpuError(
            f"CUDA error {result}: {(text.value or b'unknown').decode()}", hint="look at `nvidia-smi`; is the kernel for this GPU?"
        )
