"""Numbers of runs: every place of drawn runs, and runs that begin and end with a word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.runtime.run_numbers import RunNumbers


def numbers(lengths: list[int], dtype: type[np.signedinteger] = np.int32) -> list[int]:
    """Of all places, asked for last to first, in the order of places."""
    rows = np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)
    found: list[int] = RunNumbers(rows).at(np.arange(rows[-1])[::-1].astype(np.int64))[::-1].tolist()
    return found


@given(st.lists(st.integers(1, 3) | st.integers(60, 200), min_size=1, max_size=60))
def test_every_place(lengths: list[int]) -> None:
    assert numbers(lengths) == [number for number, length in enumerate(lengths) for _ in range(length)]


@given(st.lists(st.integers(1, 3) | st.integers(60, 200), min_size=1, max_size=60))
def test_runs_of_one_place(lengths: list[int]) -> None:
    rows = np.concatenate([[0], np.cumsum(lengths)])
    found = RunNumbers(rows).alone(np.arange(rows[-1])[::-1].astype(np.int64))[::-1].tolist()
    assert found == [length == 1 for length in lengths for _ in range(length)]


@pytest.mark.parametrize("lengths", [[64], [63, 1], [1] * 64, [64, 64, 1], [1, 127, 64]])
def test_runs_at_the_ends_of_words(lengths: list[int]) -> None:
    assert numbers(lengths, np.int64) == [number for number, length in enumerate(lengths) for _ in range(length)]


def test_any_shape() -> None:
    table = RunNumbers(np.array([0, 2, 3]))
    assert table.at(np.array([[2, 0], [1, 2]])).tolist() == [[1, 0], [0, 1]]
    assert table.at(np.zeros((0, 4), np.int64)).shape == (0, 4)
