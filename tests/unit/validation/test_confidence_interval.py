"""The paired bootstrap against what is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onerec_trt.validation.confidence_interval import error_ratios, paired_interval, share_interval


def test_equal_results_have_an_interval_of_zero_width() -> None:
    hits = np.array([True, False, True, True])
    assert paired_interval(hits, hits) == (0.0, 0.0)


def test_a_constant_difference_is_known_exactly() -> None:
    reference = np.linspace(0, 5, 50)
    assert paired_interval(reference + 0.25, reference) == pytest.approx((0.25, 0.25))


def test_pairs_that_differ_at_random_give_the_normal_interval() -> None:
    """Differences +1 and -1, 200 of each: the mean of a resample has standard deviation 1 / sqrt(400)."""
    wins = np.arange(400) % 2 == 0
    low, high = paired_interval(wins, ~wins)
    assert low == pytest.approx(-2.576 / math.sqrt(400), abs=0.015)
    assert high == pytest.approx(2.576 / math.sqrt(400), abs=0.015)


def test_pairing_cancels_what_both_share() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(scale=10, size=300)
    low, high = paired_interval(level + 1 + rng.normal(scale=0.01, size=300), level)
    assert 0.99 < low < high < 1.01


def test_the_same_results_give_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    actual, reference = rng.random(100), rng.random(100)
    assert paired_interval(actual, reference) == paired_interval(actual, reference)


@pytest.mark.parametrize(
    ("actual", "reference"), [(np.zeros(0), np.zeros(0)), (np.zeros(3), np.zeros(4)), (np.zeros((2, 2)), np.zeros((2, 2)))]
)
def test_only_pairs_of_numbers_make_sense(actual: np.ndarray, reference: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        paired_interval(actual, reference)


def some(wins: int, losses: int, both: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models: so many that the first alone has, that the second alone has, that both have."""
    return np.repeat([True, False, True], [wins, losses, both]), np.repeat([False, True, True], [wins, losses, both])


@pytest.mark.parametrize(("wins", "losses", "contains"), [(0, 7, True), (0, 8, False), (7, 0, True), (8, 0, False), (5, 5, True)])
def test_the_exact_interval_agrees_with_the_sign_test(wins: int, losses: int, contains: bool) -> None:
    """Two-sided p of n to 0 is 2 / 2^n: 0.0156 for 7, 0.0078 for 8."""
    low, high = share_interval(*some(wins, losses))
    assert (low <= 0 <= high) is contains
    assert low <= (wins - losses) / (wins + losses + 10) <= high


def test_the_exact_interval_of_known_counts() -> None:
    """Clopper and Pearson, 10 of 10: the lower end is 0.005^(1/10)."""
    low, high = share_interval(*some(10, 0, 0))
    assert (low, high) == pytest.approx((2 * 0.005**0.1 - 1, 1.0), abs=1e-6)
    mirrored = share_interval(*some(0, 10, 0))
    assert mirrored == pytest.approx((-high, -low), abs=1e-6)
    assert share_interval(*some(0, 0)) == (0.0, 0.0)


def test_the_exact_interval_of_many_is_the_normal_one() -> None:
    low, high = share_interval(*some(2000, 2000, 0))
    assert (low, high) == pytest.approx((-2.576 / math.sqrt(4000), 2.576 / math.sqrt(4000)), abs=1e-3)


def test_ratios_of_known_errors() -> None:
    ratios = error_ratios(np.array([2.0, 8.0]), np.array([1.0, 1.0]))
    assert (ratios.mean, ratios.typical) == pytest.approx((5.0, 4.0))
    assert ratios.mean_interval == pytest.approx((2.0, 8.0))
    assert ratios.typical_interval == pytest.approx((2.0, 8.0))


def test_one_error_of_zero_does_not_decide_the_typical_ratio() -> None:
    reference, actual = np.ones(100), np.full(100, 2.0)
    actual[0] = 0
    assert error_ratios(actual, reference).typical == pytest.approx(2 * (0.01 / 2) ** 0.01)


def test_ratios_without_errors_of_the_reference() -> None:
    nothing, something = np.zeros(4), np.ones(4)
    assert error_ratios(nothing, nothing)[::2] == (0.0, 0.0)
    assert error_ratios(something, nothing)[::2] == (math.inf, math.inf)
    assert all(map(math.isnan, error_ratios(np.array([1.0, math.nan]), something[:2])[::2]))
