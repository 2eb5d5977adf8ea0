"""Context attention with one CTA per tile, for every compute capability: flash attention forward in Triton.

The rows of all heads that share keys and values are the query rows of one attention, so that one beam fills a tile, too.
"""

import triton
import triton.language as tl

from .dependent import await_previous
from .rows import divider, e4m3, saturated_quotient


@triton.jit
def exp2(x):
    """2^x in one instruction, subnormal results 0: tl.exp2 keeps them at four times as many, and FP16 rounds them to 0 anyway."""
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def attention(
    query_ND, key_BGSd, value_BGSd, lengths_B, output_ND, tokens, scale, code_scale,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, HEAD: tl.constexpr, HEAD_TILE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, DESCRIPTORS: tl.constexpr, CODES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`scale` is log2(e) / sqrt(HEAD); with CODES the result is divided by `code_scale` and leaves as E4M3.

    Neighboring CTAs work on one request and group, whose keys stay in the L2 cache.
    """
    if DEPENDENT:
        await_previous()
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
    result = (attended * (1.0 / total)[:, None]).to(tl.float16)
    if CODES:
        negative, reciprocal = divider(tl.load(code_scale))
        result = e4m3(saturated_quotient(result.to(tl.float32), negative, reciprocal))
    tl.store(output_ND + place, result, mask=inside)


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
