"""The difference metric against its definition, and its behavior at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onerec_trt.core.difference import difference

FLOATS = arrays(np.float32, array_shapes(max_dims=2, max_side=5), elements=st.floats(-1e3, 1e3, width=32))


@given(FLOATS)
def test_equal_tensors_differ_by_zero(x: np.ndarray) -> None:
    assert difference(x, x.copy()) == 0


@given(FLOATS, st.floats(0.5, 2))
def test_it_is_the_published_formula(x: np.ndarray, factor: float) -> None:
    y = x.astype(np.float64) * factor + 1
    reference = 1 - 2 * (x.astype(np.float64) * y).sum() / ((x.astype(np.float64) ** 2).sum() + (y**2).sum())
    assert difference(x, y) == pytest.approx(reference, abs=1e-12)


def test_a_relative_error_gives_half_its_square() -> None:
    y = np.random.default_rng(0).standard_normal(10_000)
    assert difference(y * 1.01, y) == pytest.approx(0.5 * 0.01**2, rel=0.02)


def test_zeros_equal_zeros_and_nothing_else() -> None:
    zeros = np.zeros((2, 3))
    assert difference(zeros, zeros) == 0
    assert difference(zeros + 1e-6, zeros) == 1


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([np.inf, 1.0], [1.0, 1.0]),
        ([np.nan], [np.inf]),
        ([1.0], [1.0, 1.0]),
    ],
)
def test_what_is_not_finite_or_of_another_shape_never_passes(actual: list[float], expected: list[float]) -> None:
    assert difference(np.array(actual), np.array(expected)) == float("inf")


def test_nan_and_infinity_at_equal_places_do_not_count() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1.0, 2.0])
    assert difference(x, x) == 0
    assert difference(np.array([np.nan, 1.1]), np.array([np.nan, 1.0])) == difference(np.array([1.1]), np.array([1.0])) > 0
