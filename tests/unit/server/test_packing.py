"""Ragged requests in batches: oldest first, never more than a profile takes, and each array where its rows are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.export.contracts import serving_io
from onerec_trt.server.python_backend.packing import Group, Sizes, fill, groups, rounded_context
from onerec_trt.server.repository.limits import Limits, most_requests

WIDE = Limits(min_batch=1, max_batch=8, min_context=2, max_context=512)
LONG = Limits(min_batch=1, max_batch=2, min_context=2, max_context=1000)
LIMITS = (WIDE, LONG)
ODD = (WIDE.model_copy(update={"max_context": 490}), LONG)  # what takes eight requests ends between two multiples
IO = serving_io(3, 2)


def test_contexts_are_rounded_up_but_not_beyond_the_longest() -> None:
    assert [rounded_context(LIMITS, tokens) for tokens in (1, 256, 257, 769, 1000)] == [256, 256, 512, 1000, 1000]
    assert [rounded_context(ODD, tokens) for tokens in (1, 257, 490, 491)] == [256, 490, 490, 512]


def test_requests_share_a_batch_as_long_as_a_profile_takes_them_together() -> None:
    waiting = [Sizes(1, 100), Sizes(3, 300), Sizes(4, 10), Sizes(1, 10), Sizes(1, 900), Sizes(1, 10)]
    assert groups(LIMITS, waiting) == [Group((0, 1, 2), 8, 512), Group((3, 4), 2, 1000), Group((5,), 1, 256)]
    assert groups(LIMITS, []) == []


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([LIMITS, ODD]), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 1000)), max_size=20))
def test_no_request_is_lost_and_no_group_is_beyond_the_profiles(limits: tuple[Limits, ...], sizes: list[tuple[int, int]]) -> None:
    waiting = [Sizes(min(contexts, most_requests(limits, tokens)), tokens) for contexts, tokens in sizes]
    found = groups(limits, waiting)
    assert [place for group in found for place in group.places] == list(range(len(waiting)))
    for group in found:
        assert group.rows == sum(waiting[place].contexts for place in group.places) <= most_requests(limits, group.tokens)
        assert group.tokens >= max(waiting[place].tokens for place in group.places)


def test_requests_lie_behind_each_other_and_what_is_behind_a_context_stays() -> None:
    requests = [
        {"features": np.full((contexts, tokens, 3), value, np.float16), "lengths": np.full((contexts, 3), value, np.int64)}
        for value, contexts, tokens in ((1, 2, 2), (5, 1, 4))
    ]
    room = {"features": np.full((3, 5, 3), 9, np.float16), "lengths": np.zeros((3, 3), np.int64)}
    fill(IO, room, requests)
    assert room["lengths"][:, 0].tolist() == [1, 1, 5]
    assert room["features"][..., 0].tolist() == [[1, 1, 9, 9, 9], [1, 1, 9, 9, 9], [5, 5, 5, 5, 9]]
