"""Quant{Tensor,Row} on the GPU: E4M3 codes of an FP16 tensor, in one pass over a row."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from ..launch.case import Case, KernelCases, TileKey, half, scales
from ..launch.node import Node, expect, row_launch
from ..launch.program import Input, Int32, Output, Program, Tensor
from .dependent import await_previous
from .row_cases import MODEL_WIDTHS, row_candidates, row_trials, row_tuning
from .rows import load_row, row_amax, row_numbers, scale_of, store_codes, store_per_row


@triton.jit
def quant(
    x_ND, codes_ND, scale, rows,
    PER_ROW: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`scale` is written per row and read per tensor."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    x = load_row(x_ND + rows_R1 * WIDTH, inside_R1, WIDTH, CHUNK)
    if PER_ROW:
        row_scale = scale_of(row_amax(x))
        store_per_row(scale, row_scale, rows_R1, inside_R1, LANES)
    else:
        row_scale = tl.load(scale)
    store_codes(codes_ND + rows_R1 * WIDTH, x, row_scale, inside_R1, PER_ROW, WIDTH, CHUNK)


def quant_tensor_program(node: Node) -> Program:
    """QuantTensor: x FP16 [..., D], scale FP32 [1] to codes [..., D]."""
    expect(node, 0, "float16")
    expect(node, 1, "float32")
    arguments = (Input(0), Output(0), Input(1), Int32(node.rows))
    launch = row_launch(node, "quant", quant, ("*fp16", "*fp8e4nv", "*fp32", "i32"), arguments, {"PER_ROW": False})
    return node.program((Tensor("float8_e4m3fn", node.shape),), launch)


def quant_row_program(node: Node) -> Program:
    """QuantRow: x FP16 [..., D] to codes [..., D] and scales FP32 [..., 1]."""
    expect(node, 0, "float16")
    arguments = (Input(0), Output(0), Output(1), Int32(node.rows))
    launch = row_launch(node, "quant", quant, ("*fp16", "*fp8e4nv", "*fp32", "i32"), arguments, {"PER_ROW": True})
    outputs = (Tensor("float8_e4m3fn", node.shape), Tensor("float32", (*node.shape[:-1], 1)))
    return node.program(outputs, launch)


def quant_tensor_case(rows: int, width: int) -> Case:
    """QuantTensor of [rows, width]."""
    return Case("QuantTensor", (half(rows, width), scales(1, dynamic=())), (rows, width), tile=TileKey("quant", rows, (width,)))


def quant_row_case(rows: int, width: int) -> Case:
    """QuantRow of [rows, width]."""
    return Case("QuantRow", (half(rows, width),), (rows, width), tile=TileKey("quant", rows, (width,)))


QUANT_TENSOR_CASES = KernelCases(
    agreement="bits",
    ragged=partial(row_trials, quant_tensor_case),
    of_model=lambda rows, width: (quant_tensor_case(rows, width),),
)
QUANT_ROW_CASES = KernelCases(
    agreement="bits",
    ragged=partial(row_trials, quant_row_case),
    of_model=lambda rows, width: (quant_row_case(rows, width),),
    tuned=partial(row_tuning, quant_row_case, MODEL_WIDTHS),
    candidates=row_candidates,
)
