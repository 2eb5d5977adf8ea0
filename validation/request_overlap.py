"""Whether held-out requests are held out: how many of them calibration has seen."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ..models.requests import Requests


def overlap_warnings(heldout: Requests, calibration: Requests) -> list[str]:
    """A warning where held-out requests have the context of a calibration request; names do not count."""
    shared = [row for row, seen in enumerate(_seen(heldout, calibration)) if seen]
    if not shared:
        return []
    count = f"{len(shared)} of {len(heldout)} held-out requests have the context of a calibration request, such as {heldout.ids[shared[0]]}"
    return [f"{count}: the gates say less about requests that calibration has not seen"]


def _seen(heldout: Requests, calibration: Requests) -> list[bool]:
    by_key: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in range(len(calibration)):
        by_key[_key(calibration, row)].append(row)
    return [
        any(np.array_equal(_features(heldout, row), _features(calibration, other)) for other in by_key.get(_key(heldout, row), ()))
        for row in range(len(heldout))
    ]


def _key(requests: Requests, row: int) -> tuple[int, ...]:
    """Equal for equal contexts; cheap, so that few contexts are compared value by value."""
    return (*requests.lengths_n3[row].tolist(), hash(_features(requests, row)[:1].tobytes()))


def _features(requests: Requests, row: int) -> np.ndarray:
    return requests.values_NF[requests.offsets[row] : requests.offsets[row + 1]]
