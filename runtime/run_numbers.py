"""Which run a place lies in, for many places at once, where millions of runs lie behind each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 6  # of a place, that say which bit of a word is its own
_WORD = 1 << _WORD_BITS


class RunNumbers:
    """A bit for each place that begins a run, and the runs that begin before each word: a run's number without a search.

    10 million places take 1.9 MB, which a core's cache holds.

    Args:
        rows: [R + 1] the first place of each run, ascending from 0, and the end. No run is empty.
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        begins = np.zeros(-(-(int(rows[-1]) + 1) // _WORD) * _WORD, np.bool_)
        begins[rows] = True  # the end, too: the last run is alone as others are
        self._begins = np.packbits(begins, bitorder="little").view("<u8")
        counts = np.bitwise_count(self._begins)
        self._before = counts.cumsum(dtype=np.int32) - counts

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the run that holds each place, in their shape."""
        word = places >> _WORD_BITS
        up_to_place = self._begins[word] << (~places & (_WORD - 1)).view(np.uint64)
        number: NDArray[np.int64] = self._before[word].astype(np.int64) + np.bitwise_count(up_to_place) - 1
        return number

    def alone(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the run that holds each place has no other place, in their shape."""
        return self._begins_at(places) & self._begins_at(places + 1)

    def _begins_at(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        from_place = self._begins[places >> _WORD_BITS] >> (places & (_WORD - 1)).view(np.uint64)
        return np.asarray(from_place & np.uint64(1), np.bool_)
