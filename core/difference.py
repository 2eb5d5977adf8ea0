"""The one metric by which two implementations of the same thing are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def difference(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """1 - 2<x, y> / (|x|^2 + |y|^2), the metric DeepGEMM uses: 0 for equal tensors, about (relative error)^2 / 2 else.

    Two all-zero tensors differ by 0. A NaN or infinity must stand at the same place in both, with the
    same sign, else the difference is infinite; such places do not count otherwise. Shapes must agree.
    """
    if actual.shape != expected.shape:
        return float("inf")
    x, y = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(x[finite]).all():
        return float("inf")
    x, y = x[finite], y[finite]
    total = float((x * x).sum() + (y * y).sum())
    return 0.0 if total == 0 else max(0.0, float(((x - y) ** 2).sum()) / total)
