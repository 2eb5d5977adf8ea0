"""Category classes: semantic IDs, and beginnings of them, whose items have the same set of category bits.

A rule on categories is decided once for each class, on the host; beams then look a class up. A semantic ID always has a class. A
beginning has none (ANY_CLASS) where there are too many different sets; no rule ends it then, and the last token decides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..runtime.item_index import ANY_CLASS, CODE_BITS

MAX_CLASSES = 1024  # of an index, by default
MOST_CLASSES = 1 << (31 - CODE_BITS)  # what an entry has bits for
_Ints = NDArray[np.int64]
_Int32 = NDArray[np.int32]


class CategoryClasses(NamedTuple):
    """`classes`: of the groups of each level, INT32. `rows` [C + 1] and `patterns`: the patterns of each class."""

    classes: list[_Int32]
    rows: _Int32
    patterns: _Int32


def classify(patterns_n: _Ints, count: int, levels: tuple[_Ints, ...], most: int) -> CategoryClasses:
    """Give each semantic ID a class, and each beginning one while there is room: the most frequent sets first.

    Args:
        patterns_n: Pattern of each item, by its number.
        count: Different patterns.
        levels: Where groups begin, and the end: of items for semantic IDs, of semantic IDs for pairs, of pairs for first codes.
        most: Classes there may be, ANY_CLASS among them.

    Raises:
        RequestError: Semantic IDs alone have more classes.
    """
    most = min(most, MOST_CLASSES)
    if count == 1:  # no categories
        return CategoryClasses(
            [np.ones(len(rows) - 1, np.int32) for rows in levels], np.asarray([0, 0, 1], np.int32), np.zeros(1, np.int32)
        )
    marks = np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64)
    numbers: dict[int, int] = {}
    sets: list[_Ints] = [np.zeros(0, np.int64)]
    found: list[_Int32] = []
    members_of, patterns = np.arange(len(patterns_n) + 1), patterns_n  # of the level below: groups of patterns
    for level, rows in enumerate(levels):
        members_of, patterns = _distinct(members_of[rows], patterns, count)
        found.append(_numbered(members_of, patterns, marks, numbers, sets, most))
        if level == 0 and len(sets) > most:
            hint = "merge categories, or raise export.category_classes and --classes"
            raise RequestError(f"the semantic IDs have {len(sets) - 1} different sets of categories, at most {most - 1} fit", hint=hint)
    rows = np.concatenate([[0], np.cumsum([len(each) for each in sets])])
    return CategoryClasses(found, rows.astype(np.int32), np.concatenate(sets).astype(np.int32))


def _distinct(begins: _Ints, patterns: _Ints, count: int) -> tuple[_Ints, _Ints]:
    """The different patterns of each group, ascending; gives where groups begin, and the patterns."""
    group = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    unique = np.unique(group * count + patterns)
    return np.searchsorted(unique // count, np.arange(len(begins))), unique % count


def _numbered(begins: _Ints, patterns: _Ints, marks: NDArray[np.uint64], numbers: dict[int, int], sets: list[_Ints], most: int) -> _Int32:
    """The class of each group. New sets are added, frequent ones first; semantic IDs come first and take whatever they need.

    A set is told by the sum of 64 random bits for each of its patterns: two of a million sets are the same by chance once in 10^7.
    """
    mark = np.add.reduceat(marks[patterns], begins[:-1])
    values, first, inverse, counts = np.unique(mark, return_index=True, return_inverse=True, return_counts=True)
    of_value = np.full(len(values), ANY_CLASS, np.int32)
    first_level = not numbers
    for place in np.lexsort((values, -counts)).tolist():
        known = numbers.get(int(values[place]))
        if known is None and (first_level or len(sets) < most):
            known = numbers[int(values[place])] = len(sets)
            group = first[place]
            sets.append(patterns[begins[group] : begins[group + 1]])
        of_value[place] = ANY_CLASS if known is None else known
    return of_value[inverse]
