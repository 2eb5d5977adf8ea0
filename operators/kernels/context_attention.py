"""ContextAttention on the GPU: flash attention forward, FP32 softmax between two FP16 products on the tensor cores.

The rows of all heads that share keys and values are the query rows of one attention, so that one beam fills a tile, too.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ...core.errors import BuildError
from .compile import Build
from .factory import TMA_ALIGNMENT, Node, expect, static
from .program import Float32, Input, Int32, Launch, Output, Program, Tensor, Variant, dim
from .tiles import AttentionTile

LEAST_HEAD = 16  # channels of a tensor core instruction
FP16_BYTES = 2
LOG2_E = math.log2(math.e)


@triton.jit
def exp2(x):
    """2^x in one instruction, subnormal results 0: tl.exp2 keeps them at four times as many, and FP16 rounds them to 0 anyway."""
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def context_attention(
    query_ND, key_BGSd, value_BGSd, lengths_B, output_ND, tokens, scale,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, HEAD: tl.constexpr, HEAD_TILE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """`scale` is log2(e) / sqrt(HEAD). Neighbouring programs work on one request and group, whose keys stay in the L2 cache."""
    BLOCKS: tl.constexpr = (ROWS * SHARE + M_TILE - 1) // M_TILE
    group = tl.program_id(0) // BLOCKS  # of all requests
    request = group // GROUPS
    length = tl.minimum(tl.maximum(tl.load(lengths_B + request), 0), tokens).to(tl.int32)
    channel = tl.arange(0, HEAD_TILE)
    number = tl.program_id(0) % BLOCKS * M_TILE + tl.arange(0, M_TILE)  # SHARE heads of a row, then the next row
    place = (number // SHARE * (GROUPS * SHARE) + number % SHARE)[:, None] * HEAD + channel[None, :]
    place += (request.to(tl.int64) * ROWS * (GROUPS * SHARE) + group % GROUPS * SHARE) * HEAD
    inside = (number < ROWS * SHARE)[:, None] & (channel < HEAD)[None, :]
    query = tl.load(query_ND + place, mask=inside, other=0.0)
    start = group.to(tl.int64) * tokens * HEAD
    key, value = key_BGSd + start, value_BGSd + start
    key_tiles, value_tiles = key, value
    if DESCRIPTORS:  # they end with the request's own tokens and give zero beyond
        key_tiles = tl.make_tensor_descriptor(key, [tl.maximum(length, 1), HEAD], [HEAD, 1], [N_TILE, HEAD_TILE])
        value_tiles = tl.make_tensor_descriptor(value, [tl.maximum(length, 1), HEAD], [HEAD, 1], [N_TILE, HEAD_TILE])
    largest = tl.full((M_TILE,), float("-inf"), tl.float32)
    total = tl.zeros((M_TILE,), tl.float32)
    attended = tl.zeros((M_TILE, HEAD_TILE), tl.float32)
    for first in range(0, length, N_TILE):
        key_tile = _tile(key, key_tiles, first, length, HEAD, HEAD_TILE, N_TILE, DESCRIPTORS)
        score = tl.dot(query, key_tile.T)
        if first + N_TILE > length:
            score = tl.where((first + tl.arange(0, N_TILE) < length)[None, :], score, float("-inf"))
        above = tl.maximum(largest, tl.max(score, 1))
        probability = exp2(score * scale - (above * scale)[:, None])
        shrink = exp2((largest - above) * scale)
        largest = above
        total = total * shrink + tl.sum(probability, 1)
        value_tile = _tile(value, value_tiles, first, length, HEAD, HEAD_TILE, N_TILE, DESCRIPTORS)
        attended = tl.dot(probability.to(tl.float16), value_tile, attended * shrink[:, None])
    total = tl.where(total == 0.0, 1.0, total)  # no tokens at all: the largest probability is 1 otherwise; NaN stays NaN
    tl.store(output_ND + place, (attended * (1.0 / total)[:, None]).to(tl.float16), mask=inside)


@triton.jit
def _tile(
    pointer, descriptor, first, length,
    HEAD: tl.constexpr, HEAD_TILE: tl.constexpr, N_TILE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Keys or values of N_TILE tokens, zero beyond the request's length: 0 times the NaN of a padding would be NaN."""
    if DESCRIPTORS:
        tile = descriptor.load([first, 0])
    else:
        token = first + tl.arange(0, N_TILE)[:, None]
        channel = tl.arange(0, HEAD_TILE)[None, :]
        mask = token < length
        if HEAD_TILE > HEAD:
            mask = mask & (channel < HEAD)
        tile = tl.load(pointer + (token * HEAD + channel), mask=mask, other=0.0)
    return tile


def context_attention_program(node: Node) -> Program:
    """ContextAttention: query FP16 [B * rows, D], key and value FP16 [B, G, S, d], lengths INT64 [B] to FP16 [B * rows, D]."""
    for index in range(3):
        expect(node, index, "float16")
    expect(node, 3, "int64")
    if "rows" not in node.attributes:
        raise BuildError("the attribute rows is missing", where=node.operator, hint="correct the graph")
    rows, groups, head = int(node.attributes["rows"]), static(node, 1, 1), static(node, 1, 3)
    shapes = [list(each.shape) for each in node.inputs]
    if rows < 1 or node.width % (groups * head) or shapes[1][1:] != shapes[2][1:]:
        what = f"its inputs do not fit together: {shapes}, rows {rows}"
        raise BuildError(what, where=node.operator, hint="correct the graph")
    share = node.width // (groups * head)
    tile = node.tiles.tile(node.capability, "context_attention", (head,), rows * share)
    assert isinstance(tile, AttentionTile), tile
    kernel = node.compile(attention_build(rows, groups, share, head, tile, node.capability))
    blocks = -(-rows * share // tile.m)
    arguments = (Input(0), Input(1), Input(2), Input(3), Output(0), Int32(dim(1, 2)), Float32(LOG2_E / math.sqrt(head)))
    launch = Launch(kernel, (dim(1, 0) * (groups * blocks), 1, 1), arguments)
    return node.program((Tensor("float16", node.shape),), (Variant(1, (launch,)),))


def attention_build(rows: int, groups: int, share: int, head: int, tile: AttentionTile, capability: str) -> Build:
    """How the kernel is compiled for a tile; without descriptors where the strides do not allow them."""
    descriptors = tile.descriptors and head * FP16_BYTES % TMA_ALIGNMENT == 0
    constants: dict[str, int | bool] = {
        "ROWS": rows,
        "GROUPS": groups,
        "SHARE": share,
        "HEAD": head,
        "HEAD_TILE": max(LEAST_HEAD, triton.next_power_of_2(head)),
        "M_TILE": tile.m,
        "N_TILE": tile.n,
        "DESCRIPTORS": descriptors,
    }
    types = ("*fp16", "*fp16", "*fp16", "*i64", "*fp16", "i32", "fp32")
    return Build("context_attention", "context_attention", types, constants, capability, tile.warps, tile.stages)
