"""SwiGlu and SwiGluQuant{Tensor,Row} on the GPU: SiLU(gate) * up stays in registers in FP32 until it is rounded or quantized."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.case import MANY_ROWS, Case, Example, KernelCases, Measurement, TileKey, compiled_reference, half, scales
from ..launch.compile import Build
from ..launch.node import NO_ADDRESS, Node, by_rows, expect, row_build
from ..launch.program import Argument, DType, Expr, Input, Int32, Launch, Output, Program, Tensor, cdiv
from ..launch.tiles import RowTile
from .dependent import await_previous
from .row_cases import HIDDEN_WIDTHS, row_candidates, row_trials, row_tuning
from .rows import load_row, row_amax, row_numbers, scale_of, store_chunk, store_codes, store_per_row

IN_FP16, PER_TENSOR, PER_ROW = 0, 1, 2
_IN_FP16, _PER_ROW = tl.constexpr(IN_FP16), tl.constexpr(PER_ROW)


@triton.jit
def sigmoid(x):
    """1 / (1 + 2^(-x log2 e)) in four instructions; relative error below 1.4e-6 for |x| < 16, 0 below -87, NaN stays NaN.

    tl.exp and / keep subnormal results, at twice as many instructions; here they are 0 in E4M3 and in FP16 alike.
    """
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; mul.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
        "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def swiglu_row(gate_up_R2H, rows_R1, inside_R1, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """FP32 chunks of SiLU(gate) * up of rows that hold gate and up side by side, each WIDTH wide."""
    gate = load_row(gate_up_R2H + rows_R1 * (2 * WIDTH), inside_R1, WIDTH, CHUNK)
    up = load_row(gate_up_R2H + rows_R1 * (2 * WIDTH) + WIDTH, inside_R1, WIDTH, CHUNK)
    product = ()
    for number in tl.static_range(len(gate)):
        product = product + (gate[number] * sigmoid(gate[number]) * up[number],)  # type: ignore[assignment]  # noqa: RUF005
    return product


@triton.jit
def swiglu(
    gate_up_N2H, output_NH, scale, rows,
    FORM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """WIDTH is H. `scale` is read per tensor and written per row; the FP16 form has none."""
    if DEPENDENT:
        await_previous()
    rows_R1 = row_numbers(ROWS)
    inside_R1 = rows_R1 < rows
    product = swiglu_row(gate_up_N2H, rows_R1, inside_R1, WIDTH, CHUNK)
    start_R1 = output_NH + rows_R1 * WIDTH
    if FORM == _IN_FP16:
        for number in tl.static_range(len(product)):
            store_chunk(start_R1, product[number].to(tl.float16), inside_R1, number, WIDTH, CHUNK)
    else:
        if FORM == _PER_ROW:
            row_scale = scale_of(row_amax(product))
            store_per_row(scale, row_scale, rows_R1, inside_R1, LANES)
        else:
            row_scale = tl.load(scale)
        store_codes(start_R1, product, row_scale, inside_R1, FORM == _PER_ROW, WIDTH, CHUNK)


def swiglu_build(form: int, hidden: int, tile: RowTile, capability: str) -> Build:
    """How the kernel is compiled for rows of H in a tile."""
    types = ("*fp16", "*fp16" if form == IN_FP16 else "*fp8e4nv", "*fp32", "i32")
    return row_build(swiglu, types, {"FORM": form, "WIDTH": hidden}, tile, capability)


def swiglu_program(node: Node) -> Program:
    """SwiGlu: gate and up side by side, FP16 [..., 2 H], to FP16 [..., H]."""
    return _program(node, "swiglu", IN_FP16, "float16", NO_ADDRESS)


def swiglu_quant_tensor_program(node: Node) -> Program:
    """SwiGluQuantTensor: FP16 [..., 2 H], scale FP32 [1] to codes [..., H]."""
    expect(node, 1, "float32")
    return _program(node, "swiglu_quant", PER_TENSOR, "float8_e4m3fn", Input(1))


def swiglu_quant_row_program(node: Node) -> Program:
    """SwiGluQuantRow: FP16 [..., 2 H] to codes [..., H] and scales FP32 [..., 1]."""
    return _program(node, "swiglu_quant", PER_ROW, "float8_e4m3fn", Output(1), scales=True)


def _program(node: Node, family: str, form: int, dtype: DType, scale: Argument, scales: bool = False) -> Program:
    expect(node, 0, "float16")
    if node.width % 2:
        raise BuildError(f"gate and up side by side cannot be {node.width} wide", where=node.operator, hint="correct the graph")
    hidden = node.width // 2
    leading: tuple[Expr | int, ...] = node.shape[:-1]
    arguments = (Input(0), Output(0), scale, Int32(node.rows))

    def launches(tile: RowTile) -> tuple[Launch, ...]:
        return (Launch(node.compile(swiglu_build(form, hidden, tile, node.capability)), (cdiv(node.rows, tile.rows), 1, 1), arguments),)

    variants = by_rows(node.rows, node.tiles.classes(node.capability, family, (hidden,)), launches)
    outputs = (Tensor(dtype, (*leading, hidden)), *([Tensor("float32", (*leading, 1))] if scales else []))
    return node.program(outputs, variants)


def _case(operator: str, family: str, rows: int, hidden: int, *more: Example) -> Case:
    return Case(operator, (half(rows, 2 * hidden), *more), (rows, 2 * hidden), tile=TileKey(family, rows, (hidden,)))


def swiglu_case(rows: int, hidden: int) -> Case:
    """SwiGlu of [rows, 2 hidden]."""
    return _case("SwiGlu", "swiglu", rows, hidden)


def swiglu_quant_tensor_case(rows: int, hidden: int) -> Case:
    """SwiGluQuantTensor of [rows, 2 hidden]."""
    return _case("SwiGluQuantTensor", "swiglu_quant", rows, hidden, scales(1, dynamic=()))


def swiglu_quant_row_case(rows: int, hidden: int) -> Case:
    """SwiGluQuantRow of [rows, 2 hidden]."""
    return _case("SwiGluQuantRow", "swiglu_quant", rows, hidden)


def _row_measured() -> Iterator[Measurement]:
    case = swiglu_quant_row_case(MANY_ROWS, 5632)
    yield Measurement(case, "row scales", compiled_reference(case))


SWIGLU_CASES = KernelCases(
    agreement="bits",
    ragged=partial(row_trials, swiglu_case, halves=True, bad_rows=False),
    of_model=lambda rows, width: (swiglu_case(rows, 4 * width),),
    tuned=partial(row_tuning, swiglu_case, HIDDEN_WIDTHS),
    candidates=row_candidates,
)
SWIGLU_QUANT_TENSOR_CASES = KernelCases(
    agreement="bits",
    ragged=partial(row_trials, swiglu_quant_tensor_case, halves=True, bad_rows=False),
    of_model=lambda rows, width: (swiglu_quant_tensor_case(rows, 4 * width),),
)
SWIGLU_QUANT_ROW_CASES = KernelCases(
    agreement="bits",
    ragged=partial(row_trials, swiglu_quant_row_case, halves=True, bad_rows=False),
    of_model=lambda rows, width: (swiglu_quant_row_case(rows, 4 * width),),
    tuned=partial(row_tuning, swiglu_quant_row_case, HIDDEN_WIDTHS),
    candidates=row_candidates,
    measured=_row_measured,
)
