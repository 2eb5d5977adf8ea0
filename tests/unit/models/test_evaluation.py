"""Hit rates and the popularity baseline, counted by hand."""

from __future__ import annotations

import numpy as np
from onerec_trt.models.evaluation import hits, popularity_baseline, popularity_hits, target_places

RANKED = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 2, 3], [1, 2, 4], [1, 2, 5]]])


def test_hits_count_whole_items_among_the_first_k() -> None:
    targets = np.array([[4, 5, 6], [1, 5, 3]])
    assert hits(RANKED, targets, 1).tolist() == [False, False]
    assert hits(RANKED, targets, 2).tolist() == [True, False]
    assert hits(RANKED, targets, 99).tolist() == [True, False]
    assert target_places(RANKED, targets).tolist() == [1, 3]


def test_the_most_frequent_items_come_first_and_ties_go_to_the_smaller() -> None:
    targets = np.array([[2, 0, 0], [1, 0, 0], [3, 0, 0], [2, 0, 0], [1, 0, 9]])
    assert popularity_baseline(targets, 3).tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 9]]
    assert len(popularity_baseline(targets, 10)) == 4


def test_hits_of_the_popularity_baseline() -> None:
    train = np.array([[1, 1, 1]] * 3 + [[2, 2, 2]] * 2 + [[3, 3, 3]])
    heldout = np.array([[2, 2, 2], [3, 3, 3], [1, 1, 1]])
    assert popularity_hits(train, heldout, 2).tolist() == [True, False, True]
