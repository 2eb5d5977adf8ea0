"""Top-k with the project's tie rule: of equal scores the smaller index comes first, everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF
_LOWEST = -(1 << 31)


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last axis, largest first, and their indices (int64).

    torch.topk leaves the order of equal values open, so this sorts stably. NaN comes last, after -inf: a bad value never takes
    the place of a good one. PyTorch takes NaN for the largest, so the sort is of the negated values, smallest first.
    On a GPU, where millions of candidates are selected from, keys without ties take the place of the sort.
    """
    index = topk_by_keys(values, k) if values.is_cuda else values.neg().sort(dim=-1, stable=True).indices[..., :k]
    return values.gather(-1, index), index


def topk_by_keys(values: Tensor, k: int) -> Tensor:
    """Indices (int64) as `stable_topk` has them, by one top-k over 64-bit keys: the value in the upper half, the index in the lower.

    Args:
        values: FP16, BF16 or FP32; rows shorter than 2^32.
        k: At most the length of a row.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: the two zeros are equal
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).masked_fill_(values.isnan(), _LOWEST)  # -inf lies above
    smaller_first = _LOW_32 - torch.arange(values.shape[-1], device=values.device)
    keys = (ordered.long() << 32) | smaller_first
    return _LOW_32 - (keys.topk(k, dim=-1).values & _LOW_32)
