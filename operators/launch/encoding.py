"""A launch program as bytes, which the plugin host reads (`builders/plugin_host/program.cpp` is the other half).

All numbers are little-endian, without padding. `list<T>` is a u32 count and that many T; `text` is a u32 length and UTF-8.

    program     "ONERECKP"  u32 version = 3  u64 length of all this, header included
                list<cubin>  list<kernel>  list<input>  list<output>  list<buffer>  list<variant>
    cubin       u64 length  bytes                                  each distinct cubin once
    kernel      u32 cubin  text entry  u32 warps  u32 shared bytes  u32 global scratch bytes  u32 profile scratch bytes
                u8 dependent
    input       u8 dtype  list<i64>                                its number in core/dtypes.py; dimensions, -1: any
    output      u8 dtype  list<expression>
    buffer      expression  u8 clear
    variant     expression  list<launch>
    launch      u32 kernel  expression[3]  list<argument>
    argument    u8 kind  then u32 index (input 0, output 1, scratch 2), expression (int32 3, int64 4) or f32 (float32 5)
    expression  list<instruction>                                  operands before operators
    instruction u8 op    then i64 for a constant, u8 input  u8 axis for a dimension; see `expression.Op`

One byte may follow: TensorRT 10.6's ONNX parser adds a zero to the end of an attribute of bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

from ...core.dtypes import DTYPES, DType
from .expression import Expr, Op, as_expr
from .program import Argument, Float32, Input, Int32, Int64, Kernel, Launch, Output, Program, Scratch

MAGIC = b"ONERECKP"
VERSION = 3

_KINDS = (Input, Output, Scratch, Int32, Int64, Float32)

T = TypeVar("T")


def encode(program: Program) -> bytes:
    """Check a program and write it as bytes. Equal programs give equal bytes.

    Raises:
        BuildError: The program is inconsistent.
    """
    program.check()
    launches = list(chain.from_iterable(variant.launches for variant in program.variants))
    kernels = list(dict.fromkeys(launch.kernel for launch in launches))
    cubins = list(dict.fromkeys(kernel.cubin for kernel in kernels))
    body = b"".join(
        [
            _list(cubins, lambda cubin: struct.pack("<Q", len(cubin)) + cubin),
            _list(kernels, lambda kernel: _kernel(kernel, cubins)),
            _list(program.inputs, lambda i: _dtype(i.dtype) + _list([-1 if d is None else d for d in i.shape], _i64)),
            _list(program.outputs, lambda output: _dtype(output.dtype) + _list(output.shape, _expression)),
            _list(program.scratch, lambda buffer: _expression(buffer.bytes) + struct.pack("<B", buffer.clear)),
            _list(program.variants, lambda v: _expression(v.when) + _list(v.launches, lambda launch: _launch(launch, kernels))),
        ]
    )
    header = len(MAGIC) + struct.calcsize("<IQ")
    return MAGIC + struct.pack("<IQ", VERSION, header + len(body)) + body


def _kernel(kernel: Kernel, cubins: Sequence[bytes]) -> bytes:
    entry = kernel.entry.encode()
    numbers = (kernel.warps, kernel.shared_bytes, kernel.global_scratch_bytes, kernel.profile_scratch_bytes)
    return struct.pack("<II", cubins.index(kernel.cubin), len(entry)) + entry + struct.pack("<4IB", *numbers, kernel.dependent)


def _launch(launch: Launch, kernels: Sequence[Kernel]) -> bytes:
    grid = b"".join(_expression(axis) for axis in launch.grid)
    return struct.pack("<I", kernels.index(launch.kernel)) + grid + _list(launch.arguments, _argument)


def _argument(argument: Argument) -> bytes:
    kind = struct.pack("<B", _KINDS.index(type(argument)))
    match argument:
        case Int32(value) | Int64(value):
            return kind + _expression(value)
        case Float32(value):
            return kind + struct.pack("<f", value)
        case _:
            return kind + struct.pack("<I", argument.index)


def _expression(value: Expr | int) -> bytes:
    return _list(list(_instructions(as_expr(value))), lambda instruction: instruction)


def _instructions(expression: Expr) -> Iterable[bytes]:
    for operand in expression.operands:
        yield from _instructions(operand)
    op = struct.pack("<B", expression.op)
    if expression.op is Op.CONSTANT:
        yield op + _i64(expression.values[0])
    elif expression.op is Op.DIMENSION:
        yield op + struct.pack("<BB", *expression.values)
    else:
        yield op


def _dtype(name: DType) -> bytes:
    return struct.pack("<B", DTYPES[name].host)


def _i64(value: int) -> bytes:
    return struct.pack("<q", value)


def _list(items: Sequence[T], write: Callable[[T], bytes]) -> bytes:
    return struct.pack("<I", len(items)) + b"".join(map(write, items))
