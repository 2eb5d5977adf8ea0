"""RmsNormQuant{Tensor,Row,Block} on the GPU: norm and E4M3 codes straight from FP32 in one pass; the FP16 norm if somebody reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import triton
import triton.language as tl

from ...core import precision
from ..launch.case import MANY_ROWS, Case, Example, KernelCases, Measurement, TileKey, Trial, compiled_reference, half, scales, single
from ..launch.node import NO_ADDRESS, Node, epsilon_of, expect, expect_size, row_launch
from ..launch.program import Argument, DType, Float32, Input, Int32, Output, Program, Tensor
from .dependent import await_previous
from .rms_norm import norm_row
from .row_cases import CODES_ONLY, EPSILON, MODEL_WIDTHS, row_candidates, row_trials, row_tuning
from .rows import (
    BLOCK,
    chunk_mask,
    divider,
    e4m3,
    nan_max,
    quotient,
    row_amax,
    row_numbers,
    scale_of,
    store_chunk,
    store_codes,
    store_per_row,
)

PER_TENSOR, PER_ROW, PER_BLOCK = 0, 1, 2
_PER_ROW, _PER_BLOCK = tl.constexpr(PER_ROW), tl.constexpr(PER_BLOCK)


@triton.jit
def rms_norm_quant(
    x_ND, weight_D, codes_ND, scale, norm_ND, rows, epsilon,
    GRANULARITY: tl.constexpr, STORE_NORM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`scale` is read per tensor and written per row or block."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    normed = norm_row(x_ND, weight_D, rows_R1, inside_R1, epsilon, WIDTH, CHUNK)
    store_quantized(normed, codes_ND, scale, norm_ND, rows_R1, inside_R1, GRANULARITY, STORE_NORM, WIDTH, ROWS, CHUNK, LANES)


@triton.jit
def store_quantized(
    normed, codes_ND, scale, norm_ND, rows_R1, inside_R1,
    GRANULARITY: tl.constexpr, STORE_NORM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Codes of rows in registers, their scale where it is not given, and the rows rounded to FP16 if somebody reads them."""
    if STORE_NORM:
        for number in tl.static_range(len(normed)):
            store_chunk(norm_ND + rows_R1 * WIDTH, normed[number].to(tl.float16), inside_R1, number, WIDTH, CHUNK)
    if GRANULARITY == _PER_BLOCK:
        for number in tl.static_range(len(normed)):
            _quantize_blocks(normed[number], codes_ND, scale, rows_R1, inside_R1, number, WIDTH, ROWS, CHUNK)
    else:
        if GRANULARITY == _PER_ROW:
            row_scale = scale_of(row_amax(normed))
            store_per_row(scale, row_scale, rows_R1, inside_R1, LANES)
        else:
            row_scale = tl.load(scale)
        store_codes(codes_ND + rows_R1 * WIDTH, normed, row_scale, inside_R1, GRANULARITY == _PER_ROW, WIDTH, CHUNK)


@triton.jit
def _quantize_blocks(
    normed, codes_NK, scale_NB, rows_R1, inside_R1, number: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Codes and scales of a chunk, one scale for 128 columns; codes are zero from the width to the end of its last block."""
    COUNT: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    PER_CHUNK: tl.constexpr = CHUNK // BLOCK
    blocks = tl.reshape(normed, (ROWS, PER_CHUNK, BLOCK))
    block_scale = scale_of(tl.reduce(tl.abs(blocks), 2, nan_max, keep_dims=True))
    negative, reciprocal = divider(block_scale)
    codes = tl.reshape(e4m3(quotient(blocks, negative, reciprocal)), (ROWS, CHUNK))
    store_chunk(codes_NK + rows_R1 * (COUNT * BLOCK), codes, inside_R1, number, COUNT * BLOCK, CHUNK)
    pointer = scale_NB + rows_R1 * COUNT + (tl.arange(0, PER_CHUNK) + number * PER_CHUNK)[None, :]
    tl.store(pointer, tl.reshape(block_scale, (ROWS, PER_CHUNK)), mask=chunk_mask(inside_R1, number, COUNT, PER_CHUNK))


def quant_types(weight: str) -> tuple[str, ...]:
    """Of the kernel's arguments."""
    return "*fp16", weight, "*fp8e4nv", "*fp32", "*fp16", "i32", "fp32"


def rms_norm_quant_tensor_program(node: Node) -> Program:
    """RmsNormQuantTensor: x FP16 [..., D], weight [D], scale FP32 [1] to codes [..., D] and the norm."""
    expect(node, 2, "float32")
    outputs = (Tensor("float8_e4m3fn", node.shape), Tensor("float16", node.shape))
    return _program(node, PER_TENSOR, outputs, scale=Input(2))


def rms_norm_quant_row_program(node: Node) -> Program:
    """RmsNormQuantRow: x FP16 [..., D], weight [D] to codes [..., D], scales FP32 [..., 1] and the norm."""
    return _program(node, PER_ROW, _outputs(node, node.width, 1), scale=Output(1))


def rms_norm_quant_block_program(node: Node) -> Program:
    """RmsNormQuantBlock: x FP16 [..., D], weight [D] to codes [..., K'], scales FP32 [..., K' / 128] and the norm."""
    blocks = -(-node.width // precision.BLOCK)
    return _program(node, PER_BLOCK, _outputs(node, blocks * precision.BLOCK, blocks), scale=Output(1))


def _outputs(node: Node, width: int, scales: int) -> tuple[Tensor, ...]:
    def shaped(dtype: DType, last: int) -> Tensor:
        return Tensor(dtype, (*node.shape[:-1], last))

    return shaped("float8_e4m3fn", width), shaped("float32", scales), Tensor("float16", node.shape)


def _program(node: Node, granularity: int, outputs: tuple[Tensor, ...], scale: Argument) -> Program:
    expect(node, 0, "float16")
    weight = expect(node, 1, "float16", "float32")
    expect_size(node, 1, node.width)
    last = len(outputs) - 1
    read = node.is_read(last)
    norm: Argument = Output(last) if read else NO_ADDRESS
    arguments = (Input(0), Input(1), Output(0), scale, norm, Int32(node.rows), Float32(epsilon_of(node)))
    constants = {"GRANULARITY": granularity, "STORE_NORM": read}
    launch = row_launch(node, "rms_norm_quant", rms_norm_quant, quant_types(weight), arguments, constants)
    return node.program(outputs if read else outputs[:-1], launch)


def _case(operator: str, rows: int, width: int, *more: Example) -> Case:
    inputs = (half(rows, width), half(width, dynamic=()), *more)
    return Case(operator, inputs, (rows, width), EPSILON, tile=TileKey("rms_norm_quant", rows, (width,)))


def rms_norm_quant_tensor_case(rows: int, width: int) -> Case:
    """RmsNormQuantTensor of [rows, width]."""
    return _case("RmsNormQuantTensor", rows, width, scales(1, dynamic=()))


def rms_norm_quant_row_case(rows: int, width: int) -> Case:
    """RmsNormQuantRow of [rows, width]."""
    return _case("RmsNormQuantRow", rows, width)


def rms_norm_quant_block_case(rows: int, width: int) -> Case:
    """RmsNormQuantBlock of [rows, width]."""
    return _case("RmsNormQuantBlock", rows, width)


def _codes_only(rows: int, width: int) -> Case:
    """As a model has it where nobody reads the norm."""
    return replace(rms_norm_quant_row_case(rows, width), read=CODES_ONLY)


def _codes_only_of_fp32_weight(rows: int, width: int) -> Case:
    return replace(_codes_only(rows, width), inputs=(half(rows, width), single(width, dynamic=())))


def _row_trials() -> Iterator[Trial]:
    yield from row_trials(rms_norm_quant_row_case)
    yield from row_trials(_codes_only_of_fp32_weight, bad_rows=False)


def _row_measured() -> Iterator[Measurement]:
    for rows in (4 * MANY_ROWS, MANY_ROWS):
        case = _codes_only(rows, 1408)
        yield Measurement(case, "without the FP16 norm", compiled_reference(case))


RMS_NORM_QUANT_TENSOR_CASES = KernelCases(
    ragged=partial(row_trials, rms_norm_quant_tensor_case),
    of_model=lambda rows, width: (rms_norm_quant_tensor_case(rows, width),),
)
RMS_NORM_QUANT_ROW_CASES = KernelCases(
    ragged=_row_trials,
    of_model=lambda rows, width: (rms_norm_quant_row_case(rows, width), _codes_only(rows, width)),
    odd=lambda rows: (rms_norm_quant_row_case(rows, 100),),
    tuned=partial(row_tuning, _codes_only, MODEL_WIDTHS),
    candidates=row_candidates,
    measured=_row_measured,
)
RMS_NORM_QUANT_BLOCK_CASES = KernelCases(
    ragged=partial(row_trials, rms_norm_quant_block_case, bad_rows=False),
    of_model=lambda rows, width: (rms_norm_quant_block_case(rows, width),),
)
