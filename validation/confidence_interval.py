"""How far a result over requests could be chance: paired bootstrap, and the exact interval of two shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.99  # five recipes are judged at once; at 95 % each, one in four runs would fail by chance
ERROR_FLOOR = 0.01  # of the reference's mean error: an error that is 0 by chance would decide a geometric mean alone
_SHARE_ROUNDING = 1e-9
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
    means_RM = np.stack([values_nM.take(chosen, 0).mean(0) for chosen in _resamples(len(values_nM))])
    return [_interval(means_R) for means_R in means_RM.T]


class Ratios(NamedTuple):
    """How many times as large one model's errors are as another's: in the mean, for the typical request, and how sure each is."""

    mean: float
    mean_interval: Interval
    typical: float
    typical_interval: Interval


def error_ratios(actual: NDArray[np.generic], reference: NDArray[np.generic]) -> Ratios:
    """Ratio of the means of two models' errors of the same requests, and geometric mean of each request's ratio, with 99 % intervals.

    The mean hangs on the few requests with the largest errors, the geometric mean on none: two equally good models have one of 1,
    whatever the distribution of errors, since each is the larger one as often.

    Args:
        actual, reference: Errors [n], none negative. One below a hundredth of the reference's mean counts as that much.

    Ratios are NaN where an error is, 0 where all are 0, and infinite where those of the reference alone are.
    """
    assert actual.shape == reference.shape
    assert actual.ndim == 1
    assert len(actual)
    pairs = np.stack([actual.astype(np.float64), reference.astype(np.float64)], 1)
    if not np.isfinite(pairs).all():
        unknown = Interval(np.nan, np.nan)
        return Ratios(np.nan, unknown, np.nan, unknown)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(np.maximum(pairs, ERROR_FLOOR * pairs[:, 1].mean()))
        each = np.where(np.isneginf(logarithms[:, 0]), -np.inf, logarithms[:, 0] - logarithms[:, 1])
        columns = np.column_stack([pairs, each])
        means = np.stack([columns.mean(0), *(columns[chosen].mean(0) for chosen in _resamples(len(columns)))])
        ratios = np.where(means[:, 0] == 0, 0.0, means[:, 0] / means[:, 1])
        typical = np.exp(means[:, 2])
    return Ratios(float(ratios[0]), _interval(ratios[1:]), float(typical[0]), _interval(typical[1:]))


def share_interval(actual: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Interval:
    """Exact 99 % interval of the difference of two shares over the same requests, [n] each.

    Only requests where the two differ say anything: of these, the number that `actual` alone has is binomial. The interval is Clopper
    and Pearson's for that share. A bootstrap's is too narrow where few requests differ: 6 to 0 would be certain for it.
    """
    assert actual.shape == reference.shape
    assert actual.ndim == 1
    assert len(actual)
    wins, losses = int((actual & ~reference).sum()), int((reference & ~actual).sum())
    if wins + losses == 0:
        return Interval(0.0, 0.0)
    scale = (wins + losses) / len(actual)
    low, high = 1 - _largest_share(losses, wins), _largest_share(wins, losses)
    return Interval(scale * (2 * low - 1), scale * (2 * high - 1))


def _largest_share(wins: int, losses: int) -> float:
    """The share of wins with which so few of them still come about often enough; 1 where there is no loss."""
    low, high = 0.0, 1.0
    while losses and high - low > _SHARE_ROUNDING:
        middle = (low + high) / 2
        likely = _at_most(wins, wins + losses, middle) > (1 - CONFIDENCE) / 2
        low, high = (middle, high) if likely else (low, middle)
    return high


def _at_most(wins: int, trials: int, share: float) -> float:
    """Probability of at most so many wins, by logarithms: binomial coefficients of thousands of trials are beyond FP64."""
    return sum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(share)
            + (trials - k) * math.log1p(-share)
        )
        for k in range(wins + 1)
    )


def _resamples(n: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(_SEED)
    for _ in range(RESAMPLES):
        yield rng.integers(0, n, n)


def _interval(values: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")  # not between a finite value and an infinite one
    return Interval(float(low), float(high))
