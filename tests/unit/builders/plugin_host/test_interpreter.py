"""The host computes from a program's bytes what Python computes from the program, and refuses bytes that are none."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onerec_trt.core.dtypes import DTYPES
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.moe_cases import moe_experts_case
from onerec_trt.operators.kernels.moe_norm_cases import moe_experts_norm_case
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF, SCHEMES
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.encoding import MAGIC, VERSION, encode
from onerec_trt.operators.launch.expression import as_expr
from onerec_trt.operators.launch.program import (
    Argument,
    Buffer,
    Expr,
    Float32,
    Input,
    InputType,
    Int32,
    Int64,
    Kernel,
    Launch,
    Output,
    Program,
    Scratch,
    Tensor,
    Variant,
    cdiv,
    dim,
    evaluated,
    maximum,
    minimum,
)

Interpret = Callable[[bytes, Sequence[Sequence[int]]], tuple[int, str]]
DONE, NO_PROGRAM, REFUSED = 0, 1, 2
ADDRESS, WORKSPACE, ALIGNMENT = 0x1000, 0x100000, 256
SHAPES = st.tuples(st.tuples(*[st.integers(0, 70000)] * 2), st.tuples(st.integers(0, 5)))
INPUTS = (InputType("float16", (None, None)), InputType("int64", (None,)))
MORE = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])

leaves = st.sampled_from([dim(0, 0), dim(0, 1), dim(1, 0)]) | st.integers(-3, 300) | st.sampled_from([-(1 << 63), (1 << 63) - 1, 1 << 40])
growing_leaves = st.sampled_from([dim(0, 0), dim(0, 1), dim(1, 0)]) | st.integers(0, 300)


def _applied(pair: tuple[Callable[[Any, Any], Any], Any, Any]) -> Any:
    function, first, second = pair
    try:
        return function(as_expr(first), second)
    except BuildError:  # two constants whose result is none
        return 1


OPERATIONS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a // b,
    lambda a, b: a % b,
    cdiv,
    minimum,
    maximum,
    Expr.lt,
    Expr.le,
]
GROWING: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, _: cdiv(a, 7),
    lambda a, _: a // 3,
    minimum,
    maximum,
]

expressions = st.recursive(leaves, lambda inner: st.tuples(st.sampled_from(OPERATIONS), inner, inner).map(_applied), max_leaves=12)
growing = st.recursive(growing_leaves, lambda inner: st.tuples(st.sampled_from(GROWING), inner, inner).map(_applied), max_leaves=5)
TENSOR_TYPES = [each.name for each in DTYPES.values() if each.host is not None]
arguments = st.one_of(
    st.builds(Input, st.integers(0, 1)),
    st.builds(Output, st.just(0)),
    st.builds(Scratch, st.integers(0, 1)),
    st.builds(Int32, expressions),
    st.builds(Int64, expressions),
    st.builds(Float32, st.floats(width=32, allow_nan=False)),
)
kernels = st.builds(
    Kernel,
    cubin=st.sampled_from([b"first", b"second"]),
    entry=st.sampled_from(["gemm", "norm"]),
    warps=st.integers(1, 32),
    shared_bytes=st.integers(0, 1 << 18),
    global_scratch_bytes=st.sampled_from([0, 0, 384]),
    profile_scratch_bytes=st.sampled_from([0, 0, 16]),
    dependent=st.booleans(),
)
launches = st.builds(Launch, kernels, st.tuples(growing, growing, growing), st.lists(arguments, max_size=6).map(tuple))
programs = st.builds(
    Program,
    inputs=st.just(INPUTS),
    outputs=st.lists(
        st.builds(Tensor, st.sampled_from(TENSOR_TYPES), st.lists(expressions, max_size=3).map(tuple)), min_size=1, max_size=2
    ).map(tuple),
    variants=st.lists(st.builds(Variant, expressions, st.lists(launches, max_size=2).map(tuple)), min_size=1, max_size=3).map(tuple),
    scratch=st.tuples(*[st.builds(Buffer, growing, st.booleans())] * 2),
)


class _RefusedError(Exception):
    """The expectation is that the host refuses."""


def _limited(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise _RefusedError
    return value


def _aligned(size: int) -> int:
    return _limited(-(-_limited(size, 0, 1 << 63) // ALIGNMENT) * ALIGNMENT, 0, (1 << 63) - 1)


def _hidden(variant: Variant, shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The largest hidden regions of a variant's launches."""
    found = [(0, 0)]
    for launch in variant.launches:
        sizes = (launch.kernel.global_scratch_bytes, launch.kernel.profile_scratch_bytes)
        if any(sizes):
            blocks = 1
            for extent in evaluated(launch.grid, shapes):
                blocks = _limited(blocks * extent, 0, (1 << 63) - 1)
            found.append((_limited(blocks * sizes[0], 0, (1 << 63) - 1), _limited(blocks * sizes[1], 0, (1 << 63) - 1)))
    return max(pair[0] for pair in found), max(pair[1] for pair in found)


def _value(argument: Argument, offsets: list[int], shapes: Sequence[Sequence[int]]) -> int:
    match argument:
        case Input(index) | Output(index):
            return ADDRESS + index
        case Scratch(index):
            return WORKSPACE + offsets[index]
        case Int32(value):
            return _limited(as_expr(value).evaluate(shapes), -(1 << 31), (1 << 31) - 1) % (1 << 32)
        case Int64(value):
            return as_expr(value).evaluate(shapes) % (1 << 64)
        case Float32(number):
            return int(struct.unpack("<I", struct.pack("<f", number))[0])


def _expected(program: Program, shapes: Sequence[Sequence[int]]) -> str:
    """What the host must say, computed from the program itself."""
    lines = []
    for output, shape in zip(program.outputs, program.output_shapes(shapes), strict=True):
        lines.append(" ".join(map(str, ("output", DTYPES[output.dtype].host, *shape))))
    variant = program.variant(shapes)
    sizes = evaluated([buffer.bytes for buffer in program.scratch], shapes)
    offsets = [sum(map(_aligned, sizes[:number])) for number in range(len(sizes))]
    end = sum(map(_aligned, sizes))
    regions = [_hidden(each, shapes) for each in program.variants]
    lines.append(f"workspace {_limited(end + sum(_aligned(max(pair[kind] for pair in regions)) for kind in (0, 1)), 0, (1 << 63) - 1)}")
    used = {a.index for launch in variant.launches for a in launch.arguments if isinstance(a, Scratch)}
    for number, (buffer, size) in enumerate(zip(program.scratch, sizes, strict=True)):
        lines.append(f"scratch {offsets[number]} {size}" + (" cleared" if buffer.clear and number in used else ""))
    profile = end + _aligned(_hidden(variant, shapes)[0])
    for launch in variant.launches:
        kernel = launch.kernel
        grid = [_limited(extent, 0, most) for extent, most in zip(evaluated(launch.grid, shapes), (2**31 - 1, 65535, 65535), strict=True)]
        values = [_value(argument, offsets, shapes) for argument in launch.arguments]
        values += [WORKSPACE + end if kernel.global_scratch_bytes else 0, WORKSPACE + profile if kernel.profile_scratch_bytes else 0]
        grids, numbers = " ".join(map(str, grid)), " ".join(map(str, values))
        nothing = " nothing" if 0 in grid else ""
        launched = f"{kernel.warps} {kernel.shared_bytes}" + (" dependent" if kernel.dependent else "")
        lines.append(f"{kernel.entry} of {kernel.cubin.decode()} {grids} | {launched} | {numbers}{nothing}")
    return "\n".join(lines) + "\n"


@MORE
@given(expression=expressions, shapes=SHAPES)
def test_expressions_have_the_values_they_have_in_python(interpret: Interpret, expression: Expr | int, shapes: Any) -> None:
    program = Program(INPUTS, (Tensor("float32", (expression,)),), (Variant(1, ()),))
    try:
        expected = (DONE, f"output 0 {as_expr(expression).evaluate(shapes)}\nworkspace 0\n")
    except BuildError:
        assert interpret(encode(program), shapes)[0] == REFUSED
    else:
        assert interpret(encode(program), shapes) == expected


@pytest.mark.parametrize("second", [-3, -1, 1, 3])
@pytest.mark.parametrize("first", range(-7, 8))
def test_division_rounds_as_in_python(interpret: Interpret, first: int, second: int) -> None:
    dividend, divisor = dim(1, 0) - 10, dim(0, 0) - 5  # dimensions are never negative, differences are
    program = Program(INPUTS, (Tensor("float32", (dividend // divisor, cdiv(dividend, divisor), dividend % divisor)),), (Variant(1, ()),))
    expected = f"output 0 {first // second} {-(-first // second)} {first % second}\nworkspace 0\n"
    assert interpret(encode(program), [(second + 5, 0), (first + 10,)]) == (DONE, expected)


@MORE
@given(program=programs, shapes=SHAPES)
def test_programs_do_what_they_say_in_python(interpret: Interpret, program: Program, shapes: Any) -> None:
    blob = encode(program)
    try:
        expected = _expected(program, shapes)
    except (BuildError, _RefusedError):
        status, _ = interpret(blob, shapes)
        assert status == REFUSED
        return
    assert interpret(blob, shapes) == (DONE, expected)
    assert interpret(blob + b"\0", shapes) == (DONE, expected)  # as it comes through TensorRT's ONNX parser


@pytest.mark.parametrize("operator", [*SCHEMES, *EXPERTS_OF])
@pytest.mark.parametrize("rows", [0, 1, 90, 300, 5000, 70000])
def test_programs_of_experts_do_what_they_say_in_python(interpret: Interpret, operator: str, rows: int) -> None:
    """Their scratch buffers and grids have the longest expressions of all kernels."""
    make = moe_experts_norm_case if operator in EXPERTS_OF else moe_experts_case
    case = make(operator, max(rows, 1), 1408, 1408)
    program = program_of(case, "9.0", compile_with=lambda build: Kernel(b"-", build.function, build.warps, 0, 512))
    shapes = [(rows, *each.shape[1:]) if 0 in each.dynamic else each.shape for each in case.inputs]
    assert interpret(encode(program), shapes) == (DONE, _expected(program, shapes))


def _gemm() -> Program:
    """A program with one of everything."""
    kernel = Kernel(b"cubin", "gemm", 8, 200_000, 384, 16)
    rows = dim(0, 0)
    arguments = (Input(0), Output(0), Scratch(0), Int32(rows), Int64(rows * 2), Float32(0.5))
    small = Launch(kernel, (minimum(132, cdiv(rows, 128)), 1, 1), arguments)
    return Program(
        inputs=(InputType("float8_e4m3fn", (None, 1408)),),
        outputs=(Tensor("float16", (rows, 1408)),),
        variants=(Variant(rows.lt(64), (small,)), Variant(1, (small, small))),
        scratch=(Buffer(rows * 4, clear=True),),
    )


def test_every_cut_is_refused(interpret: Interpret) -> None:
    blob = encode(_gemm())
    assert interpret(blob, [(3, 1408)])[0] == DONE
    for length in range(len(blob)):
        status, reason = interpret(blob[:length], [(3, 1408)])
        assert status == NO_PROGRAM, f"the first {length} bytes were taken for a program"
        assert "a kernel program is damaged" in reason


def test_every_damaged_byte_is_survived(interpret: Interpret) -> None:
    blob = encode(_gemm())
    for position in range(len(blob)):
        for value in (0x00, 0x01, 0x7F, 0x80, 0xFF, blob[position] ^ 1):
            interpret(blob[:position] + bytes([value]) + blob[position + 1 :], [(3, 1408)])


def test_random_bytes_are_refused(interpret: Interpret) -> None:
    source = random.Random(0)
    for length in range(200):
        noise = source.randbytes(length)
        assert interpret(noise, [(3, 1408)])[0] == NO_PROGRAM
        blob = MAGIC + struct.pack("<IQ", 1, 20 + length) + noise
        assert interpret(blob, [(3, 1408)])[0] == NO_PROGRAM


@pytest.mark.parametrize("tail", [b"\1", b"\0\0"])
def test_more_than_the_parsers_byte_is_refused(interpret: Interpret, tail: bytes) -> None:
    status, reason = interpret(encode(_gemm()) + tail, [(3, 1408)])
    assert status == NO_PROGRAM
    assert "another length than it says" in reason


def test_another_format_is_named(interpret: Interpret) -> None:
    blob = encode(_gemm())
    status, reason = interpret(blob[:8] + struct.pack("<I", VERSION + 1) + blob[12:], [(3, 1408)])
    assert (status, reason) == (
        NO_PROGRAM,
        f"a kernel program has format {VERSION + 1}, this host reads {VERSION}: build the plan with the release that wrote the program",
    )


@pytest.mark.parametrize("shapes", [[(3, 1409)], [(3,)], [(3, 1408), (1,)], []])
def test_other_inputs_are_refused(interpret: Interpret, shapes: list[tuple[int, ...]]) -> None:
    status, reason = interpret(encode(_gemm()), shapes)
    assert status == REFUSED
    assert "takes inputs of -1x1408" in reason


def test_shapes_without_a_variant_are_refused(interpret: Interpret) -> None:
    program = Program((InputType("float16", (None,)),), (Tensor("float16", (dim(0, 0),)),), (Variant(dim(0, 0).lt(64), ()),))
    assert interpret(encode(program), [(64,)]) == (REFUSED, "a kernel program has no variant for inputs of 64")
