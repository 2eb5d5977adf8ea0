"""ContextNorm on the GPU: the norm of every head of every token, stored where attention reads it; padding is zero and never read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...core.errors import BuildError
from ..launch.case import Case, Example, KernelCases, Trial, half
from ..launch.compile import Build
from ..launch.node import Node, epsilon_of, expect, static
from ..launch.program import Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, cdiv, dim
from .rms_norm import norm_row
from .row_cases import EPSILON
from .rows import store_chunk

ELEMENTS, WARPS = 4096, 4  # of a CTA: 32 values of each thread, which it moves in fours of 16 bytes


@triton.jit
def context_norm(
    chunk_ND, weight_D, length_B, output_BGSD, rows, tokens, epsilon,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ROWS heads; a head's number is (request * tokens + token) * GROUPS + group."""
    number = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = number < rows
    token = number // GROUPS
    request = token // tokens
    position = token - request * tokens
    valid = position < tl.load(length_B + request, mask=inside, other=0)
    normed = norm_row(chunk_ND, weight_D, number.to(tl.int64), valid, epsilon, WIDTH, CHUNK)
    place = (request * GROUPS + number % GROUPS).to(tl.int64) * tokens + position
    for part in tl.static_range(len(normed)):
        store_chunk(output_BGSD + place * WIDTH, tl.where(valid, normed[part], 0.0).to(tl.float16), inside, part, WIDTH, CHUNK)


def context_norm_program(node: Node) -> Program:
    """ContextNorm: chunk FP16 [B, S, G * d], weight [d], lengths INT64 [B] to FP16 [B, G, S, d]."""
    expect(node, 0, "float16")
    weight = expect(node, 1, "float16", "float32")
    expect(node, 2, "int64")
    head = static(node, 1, 0)
    if node.width % head:
        raise BuildError(f"{node.width} channels are no whole heads of {head}", where=node.operator, hint="correct the graph")
    groups = node.width // head
    chunk = min(triton.next_power_of_2(head), ELEMENTS)
    constants = {"GROUPS": groups, "WIDTH": head, "ROWS": ELEMENTS // chunk, "CHUNK": chunk}
    types = ("*fp16", weight, "*i64", "*fp16", "i32", "i32", "fp32")
    kernel = node.compile(Build(__name__, "context_norm", types, constants, node.capability, WARPS))
    rows, tokens = node.rows * groups, dim(0, 1)
    arguments = (Input(0), Input(1), Input(2), Output(0), Int32(rows), Int32(tokens), Float32(epsilon_of(node)))
    launch = Launch(kernel, (cdiv(rows, ELEMENTS // chunk), 1, 1), arguments)
    output = Tensor("float16", (dim(0, 0), groups, tokens, head))
    return node.program((output,), (Variant(1, (launch,)),))


def context_norm_case(requests: int, tokens: int, groups: int, head: int) -> Case:
    """ContextNorm of [requests, tokens, groups * head]; lengths from 0 to all tokens."""
    lengths = Example("int64", (requests,), lambda shape, device: torch.randint(tokens + 1, shape, device=device))
    inputs = (half(requests, tokens, groups * head, dynamic=(0, 1)), half(head, dynamic=()), lengths)
    return Case("ContextNorm", inputs, (requests, tokens, groups, head), EPSILON)


def _trials() -> Iterator[Trial]:
    """Heads that are no power of two, more than a CTA has; NaN in the padding and in a token."""
    for requests, tokens, groups, head in ((1, 1, 1, 32), (3, 7, 3, 48), (2, 37, 11, 128)):
        case = context_norm_case(requests, tokens, groups, head)
        yield Trial(case)
        chunk, weight, _ = case.tensors("cpu")
        lengths = torch.arange(requests) % (tokens + 1)
        chunk[0, 0, -1] = float("nan")
        chunk[torch.arange(tokens) >= lengths[:, None]] = float("nan")
        yield Trial(case, inputs=(chunk, weight, lengths))


CONTEXT_NORM_CASES = KernelCases(
    agreement="roundings",
    ragged=_trials,
    odd=lambda rows: (context_norm_case(2, rows, 3, 128), context_norm_case(2, rows, 2, 48)),
)
