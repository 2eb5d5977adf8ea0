"""Rules of a request about the items it may get: already seen ones, categories, and how many. Encoded for a graph and applied to items."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.errors import RequestError
from ..core.graph_io import GraphIO, Role
from .item_index import ANY_CLASS, ItemIndex

MAX_CATEGORIES = 64
_LARGEST_ID = np.iinfo(np.int64).max
_THREADS = min(4, os.cpu_count() or 1)  # of a process; a server has two instances on each GPU
_IDS_OF_A_THREAD = 8192  # excluded items, at least: of 10 million they take one thread 1.3 ms, and with fewer two gain nothing


@dataclass(frozen=True)
class ItemRules:
    """What one request may get.

    Attributes:
        excluded: Item ids that must not come out, such as those already seen. Ids that the catalogue does not have change nothing.
        required: Category bits: an item needs at least one of them. 0: any item.
        forbidden: Category bits that an item must not have.
        beams: Beams kept after each step, and items at most. Default: as many as the graph has.
    """

    excluded: Sequence[int] | NDArray[np.int64] = ()
    required: int = 0
    forbidden: int = 0
    beams: int | None = None

    @property
    def restricts_categories(self) -> bool:
        return bool(self.required or self.forbidden)

    @cached_property
    def excluded_ids(self) -> NDArray[np.int64]:
        """The excluded item ids, ascending and each once.

        Raises:
            RequestError: They are not integers of 64 bits in one row.
        """
        given = np.asarray(self.excluded)
        if given.ndim != 1 or (given.size and (given.dtype.kind not in "iu" or (given > _LARGEST_ID).any())):
            raise RequestError("what is excluded are no item ids", hint="give integers of 64 bits in one row")
        ids = np.sort(given.astype(np.int64))  # np.unique takes 20 times as long with NumPy 2.3 and later
        repeated = np.zeros(len(ids), np.bool_)
        repeated[1:] = ids[1:] == ids[:-1]
        return ids[~repeated]

    def require_numbers(self, request: str) -> None:
        """Refuse what no graph could follow.

        Args:
            request: Names the request in errors.

        Raises:
            RequestError: Beams are no integer of 32 bits, categories are no bits of 64, or item ids are none.
        """
        if self.beams is not None and not _is_integer(self.beams, -(1 << 31), 1 << 31):
            raise RequestError(f"{request} asks for {self.beams} beams", hint="give a small positive integer")
        if not all(_is_integer(bits, 0, 1 << MAX_CATEGORIES) for bits in (self.required, self.forbidden)):
            what = f"category bits of {request} are no integer of 64 bits"
            raise RequestError(what, hint="required and forbidden are masks of categories 0 to 63")
        try:
            _ = self.excluded_ids
        except RequestError as error:
            raise RequestError(error.what, where=request, hint=error.hint) from None


OPEN = ItemRules()


class RuleEncoder:
    """Turns rules into the inputs of one graph, for one catalogue.

    Args:
        index: The catalogue.
        io: The contract of a graph that follows a catalogue.
    """

    def __init__(self, index: ItemIndex, io: GraphIO) -> None:
        self.index, self.io = index, io
        self._width = io.tensor(Role.ITEM_SCORES).dims[-1]
        self._classes = io.tensor(Role.ALLOWED_CLASSES).dims[-1]
        self._excluded = io.tensor(Role.EXCLUDED_SIDS).dims[-1]

    def inputs(self, rules: Sequence[ItemRules]) -> dict[str, Array]:
        """The inputs that carry the rules of a batch, by name.

        Raises:
            RequestError: A rule is impossible, or excludes more than the graph takes; names the request by its place.
        """
        inputs, refused = self.inputs_of_each(rules)
        for place in sorted(refused):
            raise refused[place]
        return inputs

    def inputs_of_each(self, rules: Sequence[ItemRules]) -> tuple[dict[str, Array], dict[int, RequestError]]:
        """Likewise, and what is wrong with rules by the place of their request, which runs as if it had none."""
        refused = self._impossible(rules)
        followed = [OPEN if place in refused else each for place, each in enumerate(rules)]
        excluded_entries = entries_without_items(self.index, followed)
        for place, entries in enumerate(excluded_entries):
            if len(entries) > self._excluded:
                refused[place] = self._too_many(place, len(entries))
                followed[place], excluded_entries[place] = OPEN, entries[:0]
        limits = np.zeros((len(rules), 3), np.int32)
        allowed = np.zeros((len(rules), self._classes), np.int32)
        excluded = np.zeros((len(rules), self._excluded), np.int32)
        for place, (each, entries) in enumerate(zip(followed, excluded_entries, strict=True)):
            limits[place] = self._beams(each), len(entries), each.restricts_categories
            excluded[place, : len(entries)] = entries
            if each.restricts_categories:
                allowed[place, : self.index.classes] = self._allowed(each)
        values = {Role.REQUEST_LIMITS: limits, Role.ALLOWED_CLASSES: allowed, Role.EXCLUDED_SIDS: excluded}
        return {self.io.name(role): array for role, array in values.items()}, refused

    def _impossible(self, rules: Sequence[ItemRules]) -> dict[int, RequestError]:
        """What is wrong with rules, whatever the catalogue, by the place of their request."""
        refused: dict[int, RequestError] = {}
        for place, each in enumerate(rules):
            try:
                self._require_possible(each, f"request {place}")
            except RequestError as error:
                refused[place] = error
        return refused

    def _require_possible(self, rules: ItemRules, request: str) -> None:
        rules.require_numbers(request)
        if not 1 <= (beams := self._beams(rules)) <= self._width:
            what = f"{request} asks for {beams} beams, the graph keeps 1 to {self._width}"
            raise RequestError(what, hint="ask for fewer, or export the graph with a larger export.beam")

    def _too_many(self, place: int, entries: int) -> RequestError:
        what = f"request {place} excludes {entries} semantic IDs, the graph takes {self._excluded}"
        return RequestError(what, hint="exclude the latest only, or export the graph with a larger export.max_excluded")

    def _beams(self, rules: ItemRules) -> int:
        return self._width if rules.beams is None else rules.beams

    def _allowed(self, rules: ItemRules) -> NDArray[np.int32]:
        """Of each class whether an item of it can fulfil the rule on categories; of ANY_CLASS it is not known, so it can."""
        rows, patterns = self.index.arrays["class_rows"], self.index.arrays["class_patterns"]
        fulfilled = np.append(_fulfilling(self.index, rules)[patterns], False)
        allowed: NDArray[np.int32] = np.logical_or.reduceat(fulfilled, rows[:-1].astype(np.int64)).astype(np.int32)
        allowed[ANY_CLASS] = 1
        return allowed


class FoundItems(NamedTuple):
    """Item ids of several places, behind each other: those of place p are ids[rows[p] : rows[p + 1]], in ascending order."""

    ids: NDArray[np.int64]
    rows: NDArray[np.int64]

    def at(self, place: int) -> list[int]:
        """The ids of one place."""
        ids: list[int] = self.ids[self.rows[place] : self.rows[place + 1]].tolist()
        return ids


def allowed_items(index: ItemIndex, entries_N: NDArray[np.int64], rules: ItemRules) -> FoundItems:
    """The items of these semantic IDs, given by their number, that the rules allow; none where the number is negative."""
    (found,) = allowed_items_of_each(index, [entries_N], [rules])
    return found


def allowed_items_of_each(index: ItemIndex, entries: Sequence[NDArray[np.int64]], rules: Sequence[ItemRules]) -> tuple[FoundItems, ...]:
    """Likewise for each request of a batch, all of them at once."""
    places, rows = index.items_of(np.concatenate(entries))
    ids = index.arrays["items"][places].astype(np.int64, copy=False)
    first_rows = np.cumsum([0, *map(len, entries)])  # of each request
    allowed = np.ones(len(ids), np.bool_)
    for (begin, end), each in zip(pairwise(rows[first_rows].tolist()), rules, strict=True):
        if each.restricts_categories:
            allowed[begin:end] = _fulfilling(index, each)[index.arrays["item_patterns"][places[begin:end]]]
        if len(each.excluded):
            allowed[begin:end] &= ~_contains(each.excluded_ids, ids[begin:end])
    rows = np.concatenate([[0], allowed.cumsum()])[rows]  # from here on of the allowed items
    ids = ids[allowed]
    return tuple(FoundItems(ids[rows[first] : rows[last]], rows[first : last + 1] - rows[first]) for first, last in pairwise(first_rows))


def entries_without_items(index: ItemIndex, rules: Sequence[ItemRules]) -> list[NDArray[np.int64]]:
    """For each request, the semantic IDs with an excluded item of which no allowed item is left: their numbers, ascending.

    Large batches are divided among a few threads: NumPy sorts and looks up without Python's lock.
    """
    parts = min(_THREADS, sum(len(each.excluded) for each in rules) // _IDS_OF_A_THREAD)
    if parts < 2:
        return _of_some(index, rules)
    ends = np.linspace(0, len(rules), parts + 1).astype(int).tolist()
    found = _threads().map(partial(_of_some, index), (rules[begin:end] for begin, end in pairwise(ends) if begin < end))
    return [entries for part in found for entries in part]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="rules")


def _of_some(index: ItemIndex, rules: Sequence[ItemRules]) -> list[NDArray[np.int64]]:
    ids = [each.excluded_ids for each in rules]
    places = index.places_with(np.concatenate(ids))  # of all requests at once
    entries = index.entries_at(places)
    alone = index.alone(places)
    runs = [slice(begin, end) for begin, end in pairwise(np.cumsum([0, *map(len, ids)]).tolist())]
    return [
        _without_items(index, each, places[run], entries[run], alone[run]) if len(each.excluded) else entries[run]
        for each, run in zip(rules, runs, strict=True)
    ]


def _without_items(
    index: ItemIndex, rules: ItemRules, places_E: NDArray[np.int64], entries_E: NDArray[np.int64], alone_E: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Of one request, by its E excluded items: their places and semantic IDs, -1 for those that the catalogue lacks, and which of them
    share their semantic ID with no other item."""
    gone, several = entries_E[alone_E], ~alone_E & (entries_E >= 0)
    if several.any():
        gone = np.concatenate([gone, _without_others(index, rules, places_E[several], entries_E[several])])
    return np.sort(gone)


def _without_others(index: ItemIndex, rules: ItemRules, places_E: NDArray[np.int64], entries_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of one request, by places and semantic IDs of E excluded items, among which are all that it excludes of these semantic IDs."""
    touched, excluded = np.unique(entries_E, return_counts=True)
    some_left = excluded < index.item_counts(touched)
    if rules.restricts_categories and some_left.any():
        some_left[some_left] = _allowed_left(index, rules, touched[some_left], places_E, entries_E)
    return touched[~some_left]


def _allowed_left(
    index: ItemIndex, rules: ItemRules, entries_U: NDArray[np.int64], places_E: NDArray[np.int64], entries_E: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the categories allow more items of each of U semantic IDs, ascending, than are among the E excluded ones."""
    fulfilling, patterns = _fulfilling(index, rules), index.arrays["item_patterns"]
    places, rows = index.items_of(entries_U)
    allowed = np.add.reduceat(fulfilling[patterns[places]], rows[:-1], dtype=np.int64)
    which = np.searchsorted(entries_U, entries_E)
    counted = entries_U.take(which, mode="clip") == entries_E
    counted[counted] = fulfilling[patterns[places_E[counted]]]
    return allowed > np.bincount(which[counted], minlength=len(entries_U))


def open_rules(io: GraphIO, requests: int) -> dict[str, Array]:
    """The inputs that carry no rules but the graph's own number of beams, by name; none for a graph with open beams."""
    if not io.has(Role.REQUEST_LIMITS):
        return {}
    roles = (Role.REQUEST_LIMITS, Role.ALLOWED_CLASSES, Role.EXCLUDED_SIDS)
    inputs: dict[str, Array] = {io.name(role): np.zeros((requests, io.tensor(role).dims[-1]), np.int32) for role in roles}
    inputs[io.name(Role.REQUEST_LIMITS)][:, 0] = io.tensor(Role.ITEM_SCORES).dims[-1]
    return inputs


def _is_integer(value: object, least: int, end: int) -> bool:
    return isinstance(value, int | np.integer) and bool(least <= value < end)


def _fulfilling(index: ItemIndex, rules: ItemRules) -> NDArray[np.bool_]:
    """Which of the catalogue's patterns of category bits fulfil the rule."""
    patterns = index.arrays["patterns"].astype(np.uint64, copy=False)
    fulfilled = (patterns & np.uint64(rules.forbidden)) == 0
    if rules.required:
        fulfilled &= (patterns & np.uint64(rules.required)) != 0
    return np.asarray(fulfilled)


def _contains(ascending: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the values are among the ascending ones, of which there is at least one."""
    return np.asarray(ascending.take(np.searchsorted(ascending, values), mode="clip") == values)
