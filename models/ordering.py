"""Top-k with the project's tie rule: of equal scores the smaller index comes first, everywhere."""

from __future__ import annotations

from torch import Tensor


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last axis, largest first, and their indices (int64).

    torch.topk leaves the order of equal values open, so this sorts stably. NaN comes last, after -inf: a bad value never takes
    the place of a good one. PyTorch takes NaN for the largest, so the sort is of the negated values, smallest first.
    """
    index = values.neg().sort(dim=-1, stable=True).indices[..., :k]
    return values.gather(-1, index), index
