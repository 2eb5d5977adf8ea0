"""The tie rule: of equal values the smaller index comes first."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.models.ordering import stable_topk, topk_by_keys


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=200), st.integers(1, 200))
def test_it_is_the_sort_by_value_then_index(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]
    top, index = stable_topk(torch.tensor(values, dtype=torch.float32), k)
    assert index.tolist() == expected
    assert top.tolist() == [values[i] for i in expected]


def test_every_row_is_sorted_by_itself() -> None:
    _, index = stable_topk(torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), 2)
    assert index.tolist() == [[2, 0], [0, 1]]


def test_nan_comes_last_and_no_index_is_out_of_range() -> None:
    top, index = stable_topk(torch.tensor([1.0, float("nan"), float("inf"), float("-inf"), float("nan")]), 5)
    assert index.tolist() == [2, 0, 3, 1, 4]
    assert top[:3].tolist() == [float("inf"), 1.0, float("-inf")]
    assert top[3:].isnan().all()


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -1.5, 3e-39, float("inf"), float("-inf"), float("nan")]), min_size=1, max_size=60))
def test_keys_select_what_the_sort_selects(values: list[float]) -> None:
    row = torch.tensor(values, dtype=torch.float32)
    for k in {1, len(values) // 2 or 1, len(values)}:
        assert topk_by_keys(row, k).tolist() == stable_topk(row, k)[1].tolist()
    half = row.half()
    assert topk_by_keys(half, len(values)).tolist() == stable_topk(half, len(values))[1].tolist()
