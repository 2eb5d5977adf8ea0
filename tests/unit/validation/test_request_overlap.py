"""Held-out requests that calibration has seen are counted by what they hold, whatever they are called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onerec_trt.models.requests import Requests, offsets_of
from onerec_trt.validation.request_overlap import overlap_warnings


def requests(count: int, seed: int) -> Requests:
    rng = np.random.default_rng(seed)
    lengths_n3 = rng.integers(1, 4, (count, 3))
    offsets = offsets_of(lengths_n3)
    return Requests([f"r{row}" for row in range(count)], rng.normal(size=(offsets[-1], 6)).astype(np.float32), offsets, lengths_n3)


def test_requests_of_other_contexts_do_not_overlap_whatever_their_names() -> None:
    assert overlap_warnings(requests(8, 0), requests(8, 1)) == []


def test_the_same_file_overlaps_in_every_request() -> None:
    (warning,) = overlap_warnings(requests(8, 0), requests(8, 0))
    assert warning.startswith("8 of 8 held-out requests have the context of a calibration request, such as r0:")


def test_some_requests_under_other_names_are_found() -> None:
    heldout = requests(8, 0)
    seen = heldout.select([5, 2])
    (warning,) = overlap_warnings(heldout, replace(seen, ids=["a", "b"]))
    assert warning.startswith("2 of 8 held-out requests have the context of a calibration request, such as r2:")


def test_a_context_that_differs_late_is_another() -> None:
    heldout = requests(4, 0)
    values_NF = heldout.values_NF.copy()
    values_NF[heldout.offsets[1:] - 1, -1] += 1
    assert overlap_warnings(heldout, replace(heldout, values_NF=values_NF)) == []
