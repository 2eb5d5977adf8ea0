"""How the outputs of special operators are compared: codes with their scales, or with what was rounded to them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.difference import difference
from .fp8 import E4M3
from .operator import Array, Attributes, largest_difference


def compare_codes(actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """First two outputs are E4M3 codes and their scales: compare the values they stand for, then the rest."""
    values = difference(_dequantized(actual[0], actual[1]), _dequantized(expected[0], expected[1]))
    return max(values, largest_difference(actual[1:], expected[1:], inputs, attributes))


def _dequantized(codes: Array, scale: Array) -> Array:
    blocks = codes.astype(np.float32).reshape(*scale.shape, -1)
    return (blocks * scale.astype(np.float32)[..., None]).reshape(codes.shape)


def difference_explaining(codes: Array, exact: Array) -> float:
    """Difference between values and the nearest ones that round to the given codes: the least error that explains these codes.

    Codes by themselves say little where few are compared: a value beside a rounding boundary flips its code by a whole step, however
    close two results are. An implementation whose values are within a difference of `exact`, and which rounds them correctly, is within
    it here, too.

    Args:
        codes: E4M3 values. Anything beyond their largest is infinitely far from all.
        exact: What the reference rounds to codes, in units of the codes.
    """
    if codes.shape != exact.shape:
        return float("inf")
    values, middles = _magnitudes()
    if (np.abs(codes) > values[-1]).any():
        return float("inf")
    place = np.searchsorted(values, np.abs(np.nan_to_num(codes.astype(np.float64))))
    low, high = (np.where(np.isnan(codes), np.nan, edge) for edge in (middles[place], middles[place + 1]))
    low[place == 0] = -high[place == 0]  # zero is rounded to from both sides
    wide, sign = exact.astype(np.float64), np.where(np.signbit(codes), -1.0, 1.0)
    nearest = np.where(np.isnan(wide), codes, sign * np.clip(sign * wide, low, high))
    return difference(nearest, wide)


@cache
def _magnitudes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """E4M3's values from 0 on, and the boundaries of rounding below and above each; above the largest everything saturates."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(E4M3).double().numpy()
    return values, np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [np.inf]])
