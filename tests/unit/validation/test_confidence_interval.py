"""The paired bootstrap against what is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onerec_trt.validation.confidence_interval import paired_interval


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
