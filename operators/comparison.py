"""How the outputs of special operators are compared: codes with their scales, indices outside tie bands."""

from __future__ import annotations

import numpy as np

from ..core.difference import difference
from .operator import Array, Attributes, largest_difference


def compare_codes(actual: list[Array], expected: list[Array], inputs: list[Array], attributes: Attributes) -> float:
    """First two outputs are E4M3 codes and their scales: compare the values they stand for, then the rest."""
    values = difference(_dequantized(actual[0], actual[1]), _dequantized(expected[0], expected[1]))
    return max(values, largest_difference(actual[1:], expected[1:], inputs, attributes))


def _dequantized(codes: Array, scale: Array) -> Array:
    blocks = codes.astype(np.float32).reshape(*scale.shape, -1)
    return (blocks * scale.astype(np.float32)[..., None]).reshape(codes.shape)
