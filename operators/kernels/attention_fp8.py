"""FP8 attention over the context with one CTA per tile, for every compute capability: flash attention forward in Triton.

As attention.py, with the rows of all heads that share keys and values as query rows. Tokens come in the order of the places in which
values stand; keys are read in that order, too.
"""

import triton
import triton.language as tl

from .attention import exp2
from .context_codes import TOKENS, token_of_place
from .dependent import await_previous
from .rows import divider, e4m3, nan_max, quotient, scale_of

TOP = tl.constexpr(8.0)  # the largest probability is 2^8: operators/context_attention_fp8.py
LOWEST = tl.constexpr(-1.0e38)  # below every score; finite, so that a context without tokens gives no NaN


@triton.jit
def attention_fp8(
    query_ND, keys_BGT, key_scale, values_BGT, value_scale, lengths_B, output_ND, blocks, scale,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, HEAD: tl.constexpr, HEAD_TILE: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`scale` is log2(e) / sqrt(HEAD). N_TILE divides a block of tokens."""
    if DEPENDENT:
        await_previous()
    PARTS: tl.constexpr = (ROWS * SHARE + M_TILE - 1) // M_TILE
    group = tl.program_id(0) // PARTS  # of all requests
    request = group // GROUPS
    length = tl.minimum(tl.maximum(tl.load(lengths_B + request), 0), blocks * TOKENS).to(tl.int32)
    channel = tl.arange(0, HEAD_TILE)
    number = tl.program_id(0) % PARTS * M_TILE + tl.arange(0, M_TILE)  # SHARE heads of a row, then the next row
    place = (number // SHARE * (GROUPS * SHARE) + number % SHARE)[:, None] * HEAD + channel[None, :]
    place += (request.to(tl.int64) * ROWS * (GROUPS * SHARE) + group % GROUPS * SHARE) * HEAD
    inside = (number < ROWS * SHARE)[:, None] & (channel < HEAD)[None, :]
    query = tl.load(query_ND + place, mask=inside, other=0.0).to(tl.float32)
    query_scale = scale_of(tl.reduce(tl.abs(query), 1, nan_max, keep_dims=True))
    negative, reciprocal = divider(query_scale)
    codes = e4m3(quotient(query, negative, reciprocal))
    factor = query_scale * (tl.load(key_scale) * scale)
    start = group.to(tl.int64) * blocks * (TOKENS * HEAD)
    largest = tl.full((M_TILE, 1), LOWEST, tl.float32)
    total = tl.zeros((M_TILE, 1), tl.float32)
    attended = tl.zeros((M_TILE, HEAD_TILE), tl.float32)
    for first in range(0, length, N_TILE):
        inner = first + tl.arange(0, N_TILE)
        token = token_of_place(inner)
        within = (channel < HEAD)[:, None]
        key = tl.load(keys_BGT + start + token[None, :] * HEAD + channel[:, None], mask=within, other=0.0)
        score = tl.dot(codes, key) * factor
        if first + N_TILE > length:
            score = tl.where((token < length)[None, :], score, float("-inf"))
        above = tl.maximum(largest, tl.ceil(tl.max(score, 1, keep_dims=True)))
        probability = exp2(score - (above - TOP))
        shrink = exp2(largest - above)
        largest = above
        total = total * shrink + tl.sum(probability, 1, keep_dims=True)
        within_block = inner // TOKENS * (TOKENS * HEAD) + inner % TOKENS
        value = tl.load(values_BGT + start + within_block[None, :] + channel[:, None] * TOKENS, mask=within, other=0.0)
        attended = tl.dot(e4m3(probability), value.T, attended * shrink)
    total = tl.where(total == 0.0, 1.0, total)  # no tokens at all; NaN stays NaN
    result = attended * (tl.load(value_scale) / total)
    tl.store(output_ND + place, result.to(tl.float16), mask=inside)
