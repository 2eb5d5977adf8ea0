"""Expressions behave like Python's integers, within 64 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.launch.expression import HIGHEST, LOWEST, Expr, as_expr, cdiv, constant, dim, maximum, minimum

ROWS, COLUMNS = dim(0, 0), dim(0, 1)
small = st.integers(-50, 50)


@pytest.mark.parametrize(
    ("expression", "plain"),
    [
        (ROWS + COLUMNS * 3 - 1, lambda a, b: a + b * 3 - 1),
        (7 - ROWS, lambda a, b: 7 - a),
        (2 * ROWS, lambda a, b: 2 * a),
        (minimum(ROWS, COLUMNS), min),
        (maximum(4, COLUMNS), lambda a, b: max(4, b)),
        (ROWS // 7, lambda a, b: a // 7),
        (ROWS % 7, lambda a, b: a % 7),
        (cdiv(ROWS, -7), lambda a, b: -(a // 7)),
        (ROWS.lt(COLUMNS), lambda a, b: a < b),
        (ROWS.le(COLUMNS), lambda a, b: a <= b),
    ],
)
@given(rows=small, columns=small)
def test_values(expression: Expr, plain: Callable[[int, int], int], rows: int, columns: int) -> None:
    assert expression.evaluate([(rows, columns)]) == int(plain(rows, columns))


@given(first=small, second=small.filter(bool))
def test_division_rounds_as_in_python(first: int, second: int) -> None:
    assert (ROWS // COLUMNS).evaluate([(first, second)]) == first // second
    assert (ROWS % COLUMNS).evaluate([(first, second)]) == first % second
    assert (100 // COLUMNS).evaluate([(first, second)]) == 100 // second
    assert (100 % COLUMNS).evaluate([(first, second)]) == 100 % second


def test_constants_are_computed_at_once() -> None:
    assert cdiv(1408, 128) * 2 == constant(22)


@pytest.mark.parametrize("expression", [ROWS * HIGHEST, ROWS + HIGHEST, LOWEST - ROWS, cdiv(LOWEST, 1 - ROWS), ROWS // (ROWS - 2)])
def test_overflow_and_division_by_zero(expression: Expr) -> None:
    with pytest.raises(BuildError, match=r"overflows 64 bits|divides by zero"):
        expression.evaluate([(2, 0)])


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_what_is_no_integer_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="not an integer"):
        as_expr(value)  # type: ignore[arg-type]


def test_an_expression_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no value yet"):
        bool(ROWS.lt(3))


@pytest.mark.parametrize(
    ("expression", "grows"),
    [
        (ROWS * COLUMNS + 3, True),
        (cdiv(ROWS, 128) * 128, True),
        (minimum(132, cdiv(ROWS, 128)), True),
        (maximum(ROWS // 2, COLUMNS), True),
        (constant(384), True),
        (ROWS - 1, False),
        (ROWS + -1, False),
        (ROWS % 128, False),
        (ROWS // COLUMNS, False),
        (ROWS // -2, False),
        (cdiv(ROWS, -128), False),
        (ROWS.lt(64) * 100, False),
        (constant(-1), False),
    ],
)
def test_what_is_largest_at_the_largest_shape(expression: Expr, grows: bool) -> None:
    assert expression.never_shrinks() is grows


def test_depth_counts_values_that_wait() -> None:
    chain, nested = as_expr(1), as_expr(ROWS)
    for _ in range(10):
        chain, nested = ROWS + chain, nested + ROWS
    assert (ROWS.depth(), nested.depth(), chain.depth()) == (1, 2, 11)
