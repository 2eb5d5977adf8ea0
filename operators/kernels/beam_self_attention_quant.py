"""BeamSelfAttention{1,2}Quant{Row,Tensor} on the GPU: one CTA for each row, whose result stays in registers until it is E4M3 codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import triton
import triton.language as tl

from ..launch.case import Case, Example, KernelCases, Measurement, Trial, compiled_reference, scales
from ..launch.compile import Build
from ..launch.node import Node, dependent, expect, expect_size
from ..launch.program import Input, Launch, Output, Program, Tensor, Variant, dim
from .beam_self_attention import (
    WARPS,
    attention_arguments,
    attention_constants,
    beam_self_attention_1_case,
    beam_self_attention_2_case,
    head_tile,
    weighted_values,
)
from .dependent import await_previous
from .rows import divider, e4m3, nan_max, quotient, saturated_quotient, scale_of

TYPES = ("*fp16", "*fp16", "*fp16", "*i64", "*fp8e4nv", "*fp32", "i32", "i32", "fp32")


@triton.jit
def beam_self_attention_quant(
    qkv_N3D, bos_B3D, first_M3D, parent_N, codes_ND, scale, rows, earlier, root,
    PER_ROW: tl.constexpr, HISTORY: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    HEADS_TILE: tl.constexpr, HEAD_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Arguments as those of `beam_self_attention`; `scale` is written per row and read per tensor.

    The result is rounded to FP16 first, as it is where two kernels compute it, so that the codes are the same.
    """
    if DEPENDENT:
        await_previous()
    WIDTH: tl.constexpr = HEADS * HEAD
    row = tl.program_id(0).to(tl.int64)
    request = row // rows
    place, inside = head_tile(HEADS, HEAD, HEADS_TILE, HEAD_TILE)
    values, total = weighted_values(qkv_N3D, bos_B3D, first_M3D, parent_N, row, request, earlier, root, place, inside, HISTORY, WIDTH)
    attended = (values / total).to(tl.float16).to(tl.float32)
    if PER_ROW:
        amax = tl.reduce(tl.reduce(tl.abs(tl.where(inside, attended, 0.0)), 1, nan_max), 0, nan_max)  # over channels, then heads
        row_scale = scale_of(amax)
        tl.store(scale + row, row_scale)
        negative, reciprocal = divider(row_scale)
        scaled = quotient(attended, negative, reciprocal)
    else:
        negative, reciprocal = divider(tl.load(scale))
        scaled = saturated_quotient(attended, negative, reciprocal)
    _store_heads(codes_ND + row * WIDTH, e4m3(scaled), HEADS, HEAD, HEADS_TILE, HEAD_TILE)


@triton.jit
def _store_heads(start, codes, HEADS: tl.constexpr, HEAD: tl.constexpr, HEADS_TILE: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Store codes [HEADS_TILE, HEAD_TILE] in groups of what a lane loads, 16 bytes of FP16.

    Triton gives a whole tile the layout of its widest access. 16 bytes of codes would be 16 channels per lane, so that lanes read
    every other 16 bytes and sum scores in another order than BeamSelfAttention does. Groups are a tile of another shape.
    """
    GROUP: tl.constexpr = min(HEAD_TILE, 8)
    COUNT: tl.constexpr = HEAD_TILE // GROUP
    head = tl.arange(0, HEADS_TILE)[:, None, None]
    channel = tl.arange(0, COUNT)[None, :, None] * GROUP + tl.arange(0, GROUP)[None, None, :]
    inside = (head < HEADS) & (channel < HEAD)
    tl.store(start + head * HEAD + channel, tl.reshape(codes, (HEADS_TILE, COUNT, GROUP)), mask=inside)


def beam_self_attention_1_quant_row_program(node: Node) -> Program:
    """BeamSelfAttention1QuantRow: inputs of BeamSelfAttention1 to codes [N, D] and scales FP32 [N, 1]."""
    return _per_row(node, 1)


def beam_self_attention_2_quant_row_program(node: Node) -> Program:
    """BeamSelfAttention2QuantRow: inputs of BeamSelfAttention2 to codes [N, D] and scales FP32 [N, 1]."""
    expect(node, 3, "int64")
    return _per_row(node, 2)


def beam_self_attention_1_quant_tensor_program(node: Node) -> Program:
    """BeamSelfAttention1QuantTensor: inputs of BeamSelfAttention1, scale FP32 [1] to codes [N, D]."""
    return _per_tensor(node, 1)


def beam_self_attention_2_quant_tensor_program(node: Node) -> Program:
    """BeamSelfAttention2QuantTensor: inputs of BeamSelfAttention2, scale FP32 [1] to codes [N, D]."""
    expect(node, 3, "int64")
    return _per_tensor(node, 2)


def _per_row(node: Node, history: int) -> Program:
    return _program(node, history, (_codes(node), Tensor("float32", (dim(0, 0), 1))), Output(1))


def _per_tensor(node: Node, history: int) -> Program:
    scale = 2 * history  # after BOS, or after the parents
    expect(node, scale, "float32")
    expect_size(node, scale, 1)
    return _program(node, history, (_codes(node),), Input(scale))


def _codes(node: Node) -> Tensor:
    return Tensor("float8_e4m3fn", (dim(0, 0), node.width // 3))


def _program(node: Node, history: int, outputs: tuple[Tensor, ...], scale: Input | Output) -> Program:
    constants = {"PER_ROW": isinstance(scale, Output), **attention_constants(node, history)}
    kernel = node.compile(dependent(Build(__name__, "beam_self_attention_quant", TYPES, constants, node.capability, WARPS)))
    launch = Launch(kernel, (node.rows, 1, 1), attention_arguments(node, history, Output(0), scale))
    return node.program(outputs, (Variant(1, (launch,)),))


def fused_case(part: Case, operator: str, *scale: Example) -> Case:
    """A case of beam self-attention as one of a fused operator, which reads a static scale too or none."""
    return replace(part, operator=operator, inputs=(*part.inputs, *scale))


def _trials(operator: str, history: int, *scale: Example) -> Iterator[Trial]:
    """Fewer or as many beams in the step before; each also with a row of zeros, and NaN in the last BOS."""
    for requests, rows, heads, head, earlier in ((1, 1, 1, 32, 1), (3, 5, 3, 48, 2), (2, 7, 14, 64, 7)):
        small = (requests, rows, heads, head)
        part = beam_self_attention_1_case(*small) if history == 1 else beam_self_attention_2_case(*small, earlier)
        case = fused_case(part, operator, *scale)
        yield Trial(case)
        qkv, bos, *more = case.tensors("cpu")
        qkv[0], bos[-1, -1] = 0, float("nan")
        yield Trial(case, inputs=(qkv, bos, *more))


def _measured() -> Iterator[Measurement]:
    """Of the 1B size."""
    case = fused_case(beam_self_attention_2_case(32, 512, heads=14, head=128), "BeamSelfAttention2QuantRow")
    yield Measurement(case, "row scales", compiled_reference(case))


def _cases(operator: str, history: int, *scale: Example, **more: Any) -> KernelCases:
    return KernelCases(agreement="roundings", ragged=partial(_trials, operator, history, *scale), **more)


STATIC_SCALE = scales(1, dynamic=())
BEAM_SELF_ATTENTION_1_QUANT_ROW_CASES = _cases("BeamSelfAttention1QuantRow", 1)
BEAM_SELF_ATTENTION_2_QUANT_ROW_CASES = _cases("BeamSelfAttention2QuantRow", 2, measured=_measured)
BEAM_SELF_ATTENTION_1_QUANT_TENSOR_CASES = _cases("BeamSelfAttention1QuantTensor", 1, STATIC_SCALE)
BEAM_SELF_ATTENTION_2_QUANT_TENSOR_CASES = _cases("BeamSelfAttention2QuantTensor", 2, STATIC_SCALE)
