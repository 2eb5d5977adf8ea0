"""Look-ups in an ascending array: beside a loop over its values, at the ends of blocks, and for types and shapes."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.runtime.sorted_table import BLOCK, SortedTable

values = st.lists(st.integers(-300, 300), min_size=1, max_size=5 * BLOCK, unique=True).map(sorted)


@given(values, st.lists(st.integers(-310, 310), max_size=40))
def test_beside_bisection_one_by_one(held: list[int], wanted: list[int]) -> None:
    table = SortedTable(np.asarray(held, np.int64))
    asked = np.asarray(wanted, np.int64)
    assert table.last_up_to(asked).tolist() == [bisect_right(held, each) - 1 for each in wanted]
    assert table.find(asked).tolist() == [held.index(each) if each in held else -1 for each in wanted]
    for given_in in (asked, np.sort(asked)):
        assert table.find(given_in, in_order=True).tolist() == table.find(given_in).tolist()


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_place_of_every_block(size: int, dtype: type[np.signedinteger]) -> None:
    table = SortedTable(np.arange(0, 2 * size, 2, dtype=dtype))
    asked = np.arange(-1, 2 * size + 1, dtype=dtype)[::-1]
    assert table.last_up_to(asked).tolist() == [(each - (each % 2)) // 2 if each < 2 * size else size - 1 for each in asked.tolist()]


def test_the_range_of_the_type_and_any_shape() -> None:
    ends = np.iinfo(np.int64)
    table = SortedTable(np.asarray([ends.min, 0, ends.max]))
    assert table.find(np.asarray([[ends.max, 1], [ends.min, 0]])).tolist() == [[2, -1], [0, 1]]
    assert table.find(np.zeros((0, 3), np.int64)).shape == (0, 3)
