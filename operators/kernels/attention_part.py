"""Context attention of few rows, over a part of the context: values weighed but not divided, in FP32, for attention_merge.py.

Parts begin at multiples of PART tokens and end with the request, so that how a request is cut does not depend on its neighbors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import exp2
from .dependent import await_previous


@triton.jit
def attention_part(
    query_ND, key_BGSd, value_BGSd, lengths_B, attended_PQd, largest_PQ, total_PQ, queries, tokens, scale,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, HEAD: tl.constexpr, HEAD_TILE: tl.constexpr, SHARED: tl.constexpr,
    M_TILE: tl.constexpr, N_TILE: tl.constexpr, PART: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Query rows as in attention.py; `queries` is how many all requests have, heads included. SHARED: keys are the values.

    A part without a token of its request stores nothing.
    """
    BLOCKS: tl.constexpr = (ROWS * SHARE + M_TILE - 1) // M_TILE
    if DEPENDENT:
        await_previous()
    group = tl.program_id(0) // BLOCKS  # of all requests
    request = group // GROUPS
    length = tl.minimum(tl.maximum(tl.load(lengths_B + request), 0), tokens).to(tl.int32)
    begin = tl.program_id(1) * PART
    if begin < length:
        end = tl.minimum(length, begin + PART)
        channel = tl.arange(0, HEAD_TILE)[None, :]
        number = tl.program_id(0) % BLOCKS * M_TILE + tl.arange(0, M_TILE)  # SHARE heads of a row, then the next row
        query = number // SHARE * (GROUPS * SHARE) + number % SHARE + group % GROUPS * SHARE
        query += request.to(tl.int64) * (ROWS * GROUPS * SHARE)
        known = number < ROWS * SHARE
        inside = known[:, None] & (channel < HEAD)
        query_tile = tl.load(query_ND + query[:, None] * HEAD + channel, mask=inside, other=0.0)
        start = group.to(tl.int64) * tokens * HEAD
        largest = tl.full((M_TILE,), float("-inf"), tl.float32)
        total = tl.zeros((M_TILE,), tl.float32)
        attended = tl.zeros((M_TILE, HEAD_TILE), tl.float32)
        for first in range(begin, end, N_TILE):
            token = first + tl.arange(0, N_TILE)
            place = start + token[:, None] * HEAD + channel
            valid = (token < end)[:, None] & (channel < HEAD)  # 0 times the NaN of a padding would be NaN
            key_tile = tl.load(key_BGSd + place, mask=valid, other=0.0)
            score = tl.where((token < end)[None, :], tl.dot(query_tile, key_tile.T), float("-inf"))
            above = tl.maximum(largest, tl.max(score, 1))
            probability = exp2(score * scale - (above * scale)[:, None])
            shrink = exp2((largest - above) * scale)
            largest = above
            total = total * shrink + tl.sum(probability, 1)
            value_tile = key_tile if SHARED else tl.load(value_BGSd + place, mask=valid, other=0.0)
            attended = tl.dot(probability.to(tl.float16), value_tile, attended * shrink[:, None])
        own = tl.program_id(1) * queries.to(tl.int64) + query
        tl.store(attended_PQd + own[:, None] * HEAD + channel, attended, mask=inside)
        tl.store(largest_PQ + own, largest * scale, mask=known)
        tl.store(total_PQ + own, total, mask=known)
