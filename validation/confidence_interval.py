"""Paired bootstrap: how far a mean difference over requests could be chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.99  # five recipes are judged at once; at 95 % each, one in four runs would fail by chance
_SEED = 20260311  # fixed, so that the same results give the same interval


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def paired_interval(actual: NDArray[np.generic], reference: NDArray[np.generic]) -> Interval:
    """99 % bootstrap interval of mean(actual - reference), resampling requests; both are [n]."""
    assert actual.shape == reference.shape
    assert actual.ndim == 1
    assert len(actual)
    differences = actual.astype(np.float64) - reference.astype(np.float64)
    return _interval(np.array([differences[chosen].mean() for chosen in _resamples(len(differences))]))


def mean_intervals(values_nM: NDArray[np.float64]) -> list[Interval]:
    """99 % bootstrap interval of the mean of each column, over the same resamples of requests as the other intervals."""
    assert len(values_nM)
    means_RM = np.stack([values_nM[chosen].mean(0) for chosen in _resamples(len(values_nM))])
    return [_interval(means_R) for means_R in means_RM.T]


def ratio_interval(actual: NDArray[np.generic], reference: NDArray[np.generic]) -> Interval:
    """99 % bootstrap interval of mean(actual) / mean(reference), resampling requests; both are [n] and none is negative.

    It is NaN where a value is, 0 where both are 0, and infinite where the reference alone is.
    """
    assert actual.shape == reference.shape
    assert actual.ndim == 1
    assert len(actual)
    pairs = np.stack([actual.astype(np.float64), reference.astype(np.float64)], 1)
    if not np.isfinite(pairs).all():
        return Interval(np.nan, np.nan)
    means = np.stack([pairs[chosen].mean(0) for chosen in _resamples(len(pairs))])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means[:, 0] == 0, 0.0, means[:, 0] / means[:, 1])
    return _interval(ratios)


def _resamples(n: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(_SEED)
    for _ in range(RESAMPLES):
        yield rng.integers(0, n, n)


def _interval(values: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")  # not between a finite value and an infinite one
    return Interval(float(low), float(high))
