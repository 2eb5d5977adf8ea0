"""RmsNorm on the GPU: a row in registers, FP32 inside, rounded to FP16 once; `norm_row` is what its quantizing forms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from ..launch.case import MANY_ROWS, Case, KernelCases, Library, Measurement, TileKey, half
from ..launch.node import Node, epsilon_of, expect, expect_size, row_launch
from ..launch.program import Float32, Input, Int32, Output, Program, Tensor
from .dependent import await_previous
from .row_cases import EPSILON, MODEL_WIDTHS, row_candidates, row_trials, row_tuning
from .rows import divider, load_row, quotient, row_numbers, store_chunk


@triton.jit
def norm_row(x_ND, weight_D, rows_R1, inside_R1, epsilon, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """FP32 chunks of x / sqrt(mean(x^2) + epsilon) * weight."""
    x = load_row(x_ND + rows_R1 * WIDTH, inside_R1, WIDTH, CHUNK)
    return norm_chunks(x, weight_D, rows_R1, inside_R1, epsilon, WIDTH, CHUNK)


@triton.jit
def norm_chunks(x, weight_D, rows_R1, inside_R1, epsilon, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """The same of a row in registers, FP32 chunks that are zero beyond the width."""
    squares = x[0] * x[0]
    for number in tl.static_range(1, len(x)):
        squares += x[number] * x[number]
    mean = tl.div_rn(tl.sum(squares, 1, keep_dims=True), WIDTH * 1.0)
    negative, reciprocal = divider(tl.sqrt_rn(mean + epsilon))
    # Read once per row, from the cache: a weight per column would have to change its layout through shared memory.
    weight = load_row(weight_D + rows_R1 * 0, inside_R1, WIDTH, CHUNK)
    normed = ()
    for number in tl.static_range(len(x)):
        normed = normed + (quotient(x[number], negative, reciprocal) * weight[number],)  # type: ignore[assignment]  # noqa: RUF005
    return normed


@triton.jit
def rms_norm(
    x_ND, weight_D, output_ND, rows, epsilon,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    normed = norm_row(x_ND, weight_D, rows_R1, inside_R1, epsilon, WIDTH, CHUNK)
    for number in tl.static_range(len(normed)):
        store_chunk(output_ND + rows_R1 * WIDTH, normed[number].to(tl.float16), inside_R1, number, WIDTH, CHUNK)


def norm_types(weight: str) -> tuple[str, ...]:
    """Of the kernel's arguments."""
    return "*fp16", weight, "*fp16", "i32", "fp32"


def rms_norm_program(node: Node) -> Program:
    """RmsNorm: x FP16 [..., D], weight FP16 or FP32 [D] to FP16 [..., D]."""
    expect(node, 0, "float16")
    weight = expect(node, 1, "float16", "float32")
    expect_size(node, 1, node.width)
    arguments = (Input(0), Input(1), Output(0), Int32(node.rows), Float32(epsilon_of(node)))
    launch = row_launch(node, "rms_norm", rms_norm, norm_types(weight), arguments, {})
    return node.program((Tensor("float16", node.shape),), launch)


def rms_norm_case(rows: int, width: int) -> Case:
    """RmsNorm of [rows, width]."""
    inputs = (half(rows, width), half(width, dynamic=()))
    return Case("RmsNorm", inputs, (rows, width), EPSILON, tile=TileKey("rms_norm", rows, (width,)))


def _torch_norm(inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    x, weight = inputs
    return lambda: torch.nn.functional.rms_norm(x, weight.shape, weight, EPSILON["epsilon"])


def _measured() -> Iterator[Measurement]:
    yield Measurement(rms_norm_case(MANY_ROWS, 1408), "FP16", Library("torch.nn.functional.rms_norm", _torch_norm))


RMS_NORM_CASES = KernelCases(
    agreement="roundings",
    ragged=partial(row_trials, rms_norm_case),
    of_model=lambda rows, width: (rms_norm_case(rows, width),),
    tuned=partial(row_tuning, rms_norm_case, MODEL_WIDTHS),
    candidates=row_candidates,
    measured=_measured,
)
