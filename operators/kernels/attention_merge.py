"""The second launch of an attention over parts of the context: a request's parts in their order, one division, one rounding, codes."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import exp2
from .dependent import await_previous
from .rows import divider, e4m3, saturated_quotient


@triton.jit
def attention_merge(
    attended_PQd, largest_PQ, total_PQ, lengths_B, output_ND, code_scale, queries, tokens,
    QUERIES: tl.constexpr, HEAD: tl.constexpr, HEAD_TILE: tl.constexpr, PART: tl.constexpr, PARTS_TILE: tl.constexpr,
    CODES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A head of a row for each CTA; QUERIES are those of a request. With CODES as in attention.py.

    A part's sums count for powers of two above its own largest score, which are shrunk to the largest of all.
    """
    if DEPENDENT:
        await_previous()
    query = tl.program_id(0)
    length = tl.minimum(tl.maximum(tl.load(lengths_B + query // QUERIES), 0), tokens).to(tl.int32)
    parts = (length + PART - 1) // PART
    channel = tl.arange(0, HEAD_TILE)
    above = float("-inf")
    total = 0.0
    attended = tl.zeros((HEAD_TILE,), tl.float32)
    for first in range(0, parts, PARTS_TILE):
        part = first + tl.arange(0, PARTS_TILE)
        known = part < parts
        own = part * queries.to(tl.int64) + query
        largest = tl.load(largest_PQ + own, mask=known, other=float("-inf"))
        weight = tl.load(total_PQ + own, mask=known, other=0.0)
        inside = known[:, None] & (channel < HEAD)[None, :]
        value = tl.load(attended_PQd + own[:, None] * HEAD + channel[None, :], mask=inside, other=0.0)
        before = above
        above = tl.maximum(above, tl.max(largest, 0))
        shrink = exp2(before - above)
        factor = exp2(largest - above)
        total = total * shrink + tl.sum(factor * weight, 0)
        attended = attended * shrink + tl.sum(factor[:, None] * value, 0)
    total = tl.where(total == 0.0, 1.0, total)  # no tokens at all; NaN stays NaN
    result = (attended * (1.0 / total)).to(tl.float16)
    if CODES:
        negative, reciprocal = divider(tl.load(code_scale))
        result = e4m3(saturated_quotient(result.to(tl.float32), negative, reciprocal))
    tl.store(output_ND + query.to(tl.int64) * HEAD + channel, result, mask=channel < HEAD)
