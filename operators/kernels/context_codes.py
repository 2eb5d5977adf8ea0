"""Context{Key,Value}Codes on the GPU: a block of tokens of a head is normed, quantized and stored as the tensor core reads it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from ...core.errors import BuildError
from .. import context_codes as definition
from ..launch.case import Case, Example, KernelCases, Trial, half, scales
from ..launch.compile import Build
from ..launch.node import Node, epsilon_of, expect, expect_size, static
from ..launch.program import Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, cdiv, dim
from .rms_norm import norm_row
from .row_cases import EPSILON
from .rows import divider, e4m3, saturated_quotient

TOKENS = tl.constexpr(definition.TOKENS)
ELEMENTS_PER_WARP = 2048  # 64 values of each thread


@triton.jit
def token_of_place(place):
    """Which token of a block stands at a place among its values: docs/kernels/context-attention-fp8.md."""
    return place // 16 * 16 + place // 2 % 2 * 8 + place % 16 // 4 * 2 + place % 2


@triton.jit
def context_codes(
    chunk_ND, weight_D, length_B, scale, codes_BGT, tokens, blocks, epsilon,
    VALUES: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One block of one head; a block's number is (request * GROUPS + group) * blocks + block. Keys [128, d], VALUES [d, 128]."""
    block = tl.program_id(0)
    head = block // blocks
    request = head // GROUPS
    place = tl.arange(0, TOKENS)[:, None]
    token = block % blocks * TOKENS + (token_of_place(place) if VALUES else place)
    valid = token < tl.minimum(tl.load(length_B + request), tokens)
    number = (request.to(tl.int64) * tokens + token) * GROUPS + head % GROUPS
    (normed,) = norm_row(chunk_ND, weight_D, number, valid, epsilon, WIDTH, CHUNK)
    negative, reciprocal = divider(tl.load(scale))
    codes = e4m3(saturated_quotient(tl.where(valid, normed, 0.0), negative, reciprocal))
    start = codes_BGT + block.to(tl.int64) * (TOKENS * WIDTH)
    channel = tl.arange(0, CHUNK)[None, :]
    if VALUES:
        channel = tl.trans(channel)
        tl.store(start + channel * TOKENS + tl.trans(place), tl.trans(codes), mask=channel < WIDTH)
    else:
        tl.store(start + place * WIDTH + channel, codes, mask=channel < WIDTH)


def context_key_codes_program(node: Node) -> Program:
    """ContextKeyCodes: chunk FP16 [B, S, G * d], weight [d], lengths INT64 [B], scale FP32 [1] to codes [B, G, T, 128, d]."""
    return _program(node, values=False)


def context_value_codes_program(node: Node) -> Program:
    """ContextValueCodes: the same inputs to codes [B, G, T, d, 128]."""
    return _program(node, values=True)


def _program(node: Node, values: bool) -> Program:
    expect(node, 0, "float16")
    weight = expect(node, 1, "float16", "float32")
    expect(node, 2, "int64")
    expect(node, 3, "float32")
    expect_size(node, 3, 1)
    head = static(node, 1, 0)
    if node.width % head:
        raise BuildError(f"{node.width} channels are no whole heads of {head}", where=node.operator, hint="correct the graph")
    groups, chunk = node.width // head, triton.next_power_of_2(head)
    constants = {"VALUES": values, "GROUPS": groups, "WIDTH": head, "CHUNK": chunk}
    types = ("*fp16", weight, "*i64", "*fp32", "*fp8e4nv", "i32", "i32", "fp32")
    warps = min(16, max(1, definition.TOKENS * chunk // ELEMENTS_PER_WARP))
    kernel = node.compile(Build(__name__, "context_codes", types, constants, node.capability, warps))
    blocks = cdiv(dim(0, 1), definition.TOKENS)
    arguments = (Input(0), Input(1), Input(2), Input(3), Output(0), Int32(dim(0, 1)), Int32(blocks), Float32(epsilon_of(node)))
    launch = Launch(kernel, (dim(0, 0) * groups * blocks, 1, 1), arguments)
    block = (head, definition.TOKENS) if values else (definition.TOKENS, head)
    return node.program((Tensor("float8_e4m3fn", (dim(0, 0), groups, blocks, *block)),), (Variant(1, (launch,)),))


def context_codes_case(operator: str, requests: int, tokens: int, groups: int, head: int) -> Case:
    """Of [requests, tokens, groups * head]; lengths from 0 to all tokens."""
    lengths = Example("int64", (requests,), lambda shape, device: torch.randint(tokens + 1, shape, device=device))
    chunk, weight = half(requests, tokens, groups * head, dynamic=(0, 1)), half(head, dynamic=())
    return Case(operator, (chunk, weight, lengths, scales(1, dynamic=())), (requests, tokens, groups, head), EPSILON)


def _trials(operator: str) -> Iterator[Trial]:
    """Heads that are no power of two, more than a block of tokens; NaN in the padding and in a token."""
    for requests, tokens, groups, head in ((1, 1, 1, 32), (3, 7, 3, 48), (2, 137, 2, 128)):
        case = context_codes_case(operator, requests, tokens, groups, head)
        yield Trial(case)
        chunk, weight, _, scale = case.tensors("cpu")
        lengths = torch.arange(requests) % (tokens + 1)
        chunk[0, 0, -1] = float("nan")
        chunk[torch.arange(tokens) >= lengths[:, None]] = float("nan")
        yield Trial(case, inputs=(chunk, weight, lengths, scale))


def _cases(operator: str) -> KernelCases:
    return KernelCases(
        agreement="roundings",
        ragged=partial(_trials, operator),
        odd=lambda rows: (context_codes_case(operator, 2, rows, 3, 128), context_codes_case(operator, 2, rows, 2, 48)),
    )


CONTEXT_KEY_CODES_CASES = _cases("ContextKeyCodes")
CONTEXT_VALUE_CODES_CASES = _cases("ContextValueCodes")
