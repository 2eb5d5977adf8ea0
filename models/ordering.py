"""Top-k with the project's tie rule: of equal scores the smaller index comes first, everywhere."""

from __future__ import annotations

from torch import Tensor


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last axis, largest first, and their indices (int64).

    torch.topk leaves the order of equal values open, so this sorts stably. NaN sorts first.
    """
    ordered, index = values.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :k], index[..., :k]
