"""ContextFeatures on the GPU: every row of the result is written once, in whole; features are read where their token has a pathway."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.case import Case, Example, KernelCases, Trial, half
from ..launch.compile import Build
from ..launch.node import Node, dependent, expect, static
from ..launch.program import Input, Int32, Launch, Output, Program, Tensor, Variant, cdiv, dim
from .dependent import await_previous

ROWS, WARPS = 8, 4  # tokens of a CTA, two of each warp
MAX_CHUNK = 256  # columns that a warp stores at a time, 16 bytes of each lane


@triton.jit
def context_features(
    features_NF, length_BP, output_NX, rows, tokens,
    PATHWAYS: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS tokens; a token's number is request * tokens + position. WIDTH columns of each pathway, FEATURES of them filled."""
    if DEPENDENT:
        await_previous()
    number = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = number < rows
    request = number // tokens
    position = number - request * tokens
    end = tl.zeros((ROWS, 1), tl.int64)
    pathway = tl.zeros((ROWS, 1), tl.int32)  # PATHWAYS behind the last one, where no column is filled
    for each in tl.static_range(PATHWAYS):
        end += tl.load(length_BP + request * PATHWAYS + each, mask=inside, other=0)
        pathway += (position >= end).to(tl.int32)
    start = number.to(tl.int64)
    for part in tl.static_range((PATHWAYS * WIDTH + CHUNK - 1) // CHUNK):
        column = (tl.arange(0, CHUNK) + part * CHUNK)[None, :]
        feature = column - pathway * WIDTH
        filled = inside & (feature >= 0) & (feature < FEATURES)
        values = tl.load(features_NF + start * FEATURES + feature, mask=filled, other=0.0)
        tl.store(output_NX + start * (PATHWAYS * WIDTH) + column, values, mask=inside & (column < PATHWAYS * WIDTH))


def context_features_program(node: Node) -> Program:
    """ContextFeatures: features FP16 [B, S, F], lengths INT64 [B, P] to FP16 [B * S, P * K]; K is the attribute `width`."""
    expect(node, 0, "float16")
    expect(node, 1, "int64")
    pathways, features, width = static(node, 1, 1), node.width, int(node.attributes.get("width", 0))
    if width < features:
        what = f"{features} features do not fit into the {width} columns of a pathway"
        raise BuildError(what, where=node.operator, hint="correct the attribute width in the graph")
    row = pathways * width
    constants = {"PATHWAYS": pathways, "FEATURES": features, "WIDTH": width, "ROWS": ROWS}
    constants["CHUNK"] = min(triton.next_power_of_2(row), MAX_CHUNK)
    types = ("*fp16", "*i64", "*fp16", "i32", "i32")
    kernel = node.compile(dependent(Build(__name__, "context_features", types, constants, node.capability, WARPS)))
    arguments = (Input(0), Input(1), Output(0), Int32(node.rows), Int32(dim(0, 1)))
    launch = Launch(kernel, (cdiv(node.rows, ROWS), 1, 1), arguments)
    return node.program((Tensor("float16", (node.rows, row)),), (Variant(1, (launch,)),))


def context_features_case(requests: int, tokens: int, features: int, width: int) -> Case:
    """ContextFeatures of [requests, tokens, features] for three pathways, each from 0 to half of the tokens long."""
    lengths = Example("int64", (requests, 3), lambda shape, device: torch.randint(tokens // 2 + 1, shape, device=device))
    inputs = (half(requests, tokens, features, dynamic=(0, 1)), lengths)
    return Case("ContextFeatures", inputs, (requests, tokens, features, width), {"width": width})


def _trials() -> Iterator[Trial]:
    """Rows that are no power of two, of odd length and without padding; requests without tokens or pathways; NaN in the padding."""
    for requests, tokens, features, width in ((3, 7, 27, 32), (1, 1, 5, 16), (2, 37, 210, 224), (3, 9, 48, 48)):
        case = context_features_case(requests, tokens, features, width)
        yield Trial(case)
        given, _ = case.tensors("cpu")
        lengths = torch.tensor([[0, tokens // 2, 1], [0, 0, 0], [tokens, 0, 0]])[:requests]
        given[torch.arange(tokens) >= lengths.sum(1, keepdim=True)] = float("nan")
        yield Trial(case, inputs=(given, lengths))


CONTEXT_FEATURES_CASES = KernelCases(
    agreement="bits",
    ragged=_trials,
    odd=lambda rows: (context_features_case(2, rows, 210, 224), context_features_case(3, rows, 27, 32)),
)
