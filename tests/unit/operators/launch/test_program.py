"""A launch program that the host could not run is refused before it becomes bytes; equal programs give equal bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.launch.encoding import MAGIC, encode
from onerec_trt.operators.launch.program import (
    Buffer,
    Input,
    InputType,
    Int32,
    Kernel,
    Launch,
    Output,
    Program,
    Scratch,
    Tensor,
    Variant,
    cdiv,
    dim,
)

ROWS = dim(0, 0)
KERNEL = Kernel(cubin=b"an ELF image" * 100, entry="gemm", warps=8, shared_bytes=0, global_scratch_bytes=0)
LAUNCH = Launch(KERNEL, (cdiv(ROWS, 128), 1, 1), (Input(0), Output(0), Int32(ROWS)))
PROGRAM = Program((InputType("float16", (None, 1408)),), (Tensor("float16", (ROWS, 1408)),), (Variant(1, (LAUNCH,)),))


def _with(**changes: Any) -> Program:
    """The program with another launch, or another kernel."""
    kernel = replace(KERNEL, **{k: v for k, v in changes.items() if hasattr(KERNEL, k)})
    launch = replace(LAUNCH, kernel=kernel, **{k: v for k, v in changes.items() if not hasattr(KERNEL, k)})
    return replace(PROGRAM, variants=(Variant(1, (launch,)),))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (replace(PROGRAM, outputs=()), "no outputs"),
        (replace(PROGRAM, variants=()), "no variants"),
        (replace(PROGRAM, inputs=(InputType("float16", (None,) * 9),)), "9 dimensions"),
        (replace(PROGRAM, inputs=(InputType("float16", (None, -1)),)), "negative dimension"),
        (replace(PROGRAM, inputs=PROGRAM.inputs * 65), "the most are 64"),
        (replace(PROGRAM, outputs=(Tensor("bfloat16", (ROWS,)),)), "no kernel takes one of the types .'bfloat16', 'float16'"),
        (replace(PROGRAM, outputs=(Tensor("float16", (dim(1, 0),)),)), r"dim\(1, 0\)"),
        (replace(PROGRAM, outputs=(Tensor("float16", (dim(0, 2),)),)), r"dim\(0, 2\)"),
        (replace(PROGRAM, scratch=(Buffer(ROWS - 1),)), "scratch 0 may be largest at a smaller shape"),
        (_with(arguments=(Input(1),)), r"no Input\(1\)"),
        (_with(arguments=(Output(1),)), r"no Output\(1\)"),
        (_with(arguments=(Scratch(0),)), r"no Scratch\(0\)"),
        (_with(arguments=(Input(-1),)), r"no Input\(-1\)"),
        (_with(arguments=(Input(0),) * 65), "more than 64 arguments"),
        (_with(cubin=b""), "no cubin"),
        (_with(entry=""), "no name"),
        (_with(warps=0), "0 warps"),
        (_with(warps=33), "33 warps"),
        (_with(shared_bytes=-1), "shared memory"),
        (_with(global_scratch_bytes=-1), "hidden scratch"),
        (_with(global_scratch_bytes=384, grid=(132 - ROWS, 1, 1)), "its grid decides the size"),
    ],
)
def test_what_could_not_run_is_refused(program: Program, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        encode(program)


def test_deep_nesting_is_refused() -> None:
    size = ROWS + 0
    for _ in range(70):
        size = 1 + ROWS * size
    with pytest.raises(BuildError, match="nested deeper"):
        encode(replace(PROGRAM, outputs=(Tensor("float16", (size,)),)))


def test_a_cubin_is_stored_once() -> None:
    other = replace(KERNEL, entry="other")
    launches = (LAUNCH, LAUNCH, replace(LAUNCH, kernel=other))
    blob = encode(replace(PROGRAM, variants=(Variant(ROWS.lt(64), launches), Variant(1, launches))))
    assert blob.startswith(MAGIC)
    assert blob.count(KERNEL.cubin) == 1
    assert blob.count(b"gemm") == 1


def test_equal_programs_give_equal_bytes() -> None:
    assert encode(PROGRAM) == encode(replace(PROGRAM))
    assert encode(PROGRAM) != encode(_with(warps=4))


def test_the_first_variant_that_holds_runs() -> None:
    small, large = Variant(ROWS.lt(64), ()), Variant(1, (LAUNCH,))
    program = replace(PROGRAM, variants=(small, large))
    assert program.variant([(63, 1408)]) is small
    assert program.variant([(64, 1408)]) is large
    assert program.output_shapes([(63, 1408)]) == ((63, 1408),)
    with pytest.raises(BuildError, match="no variant"):
        replace(program, variants=(small,)).variant([(64, 1408)])
