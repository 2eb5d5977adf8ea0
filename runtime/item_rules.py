"""Rules of a request about the items it may get: already seen ones, categories, and how many. Encoded for a graph and applied to items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.errors import RequestError
from ..core.graph_io import GraphIO, Role
from .item_index import ANY_CLASS, ItemIndex

MAX_CATEGORIES = 64


@dataclass(frozen=True)
class ItemRules:
    """What one request may get.

    Attributes:
        excluded: Item ids that must not come out, such as those already seen. Ids that the catalogue does not have change nothing.
        required: Category bits: an item needs at least one of them. 0: any item.
        forbidden: Category bits that an item must not have.
        beams: Beams kept after each step, and items at most. Default: as many as the graph has.
    """

    excluded: Sequence[int] = ()
    required: int = 0
    forbidden: int = 0
    beams: int | None = None

    @property
    def restricts_categories(self) -> bool:
        return bool(self.required or self.forbidden)


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
        refused: dict[int, RequestError] = {}
        limits = np.zeros((len(rules), 3), np.int32)
        allowed = np.zeros((len(rules), self._classes), np.int32)
        excluded = np.zeros((len(rules), self._excluded), np.int32)
        for place, each in enumerate(rules):
            try:
                entries, beams = self._excluded_entries(each, place), self._beams(each, place)
                classes = self._allowed(each) if each.restricts_categories else ()
            except RequestError as error:
                refused[place] = error
                limits[place] = self._width, 0, 0
                continue
            limits[place] = beams, len(entries), each.restricts_categories
            excluded[place, : len(entries)] = entries
            allowed[place, : len(classes)] = classes
        values = {Role.REQUEST_LIMITS: limits, Role.ALLOWED_CLASSES: allowed, Role.EXCLUDED_SIDS: excluded}
        return {self.io.name(role): array for role, array in values.items()}, refused

    def _beams(self, rules: ItemRules, place: int) -> int:
        beams = self._width if rules.beams is None else rules.beams
        if not 1 <= beams <= self._width:
            what = f"request {place} asks for {beams} beams, the graph keeps 1 to {self._width}"
            raise RequestError(what, hint="ask for fewer, or export the graph with a larger export.beam")
        return beams

    def _excluded_entries(self, rules: ItemRules, place: int) -> NDArray[np.int64]:
        """Semantic IDs of which no allowed item is left, ascending."""
        if not len(rules.excluded):
            return np.zeros(0, np.int64)
        touched = np.sort(self.index.entries_with(np.asarray(rules.excluded, np.int64)))
        touched = touched[np.diff(touched, prepend=-1) > 0]  # each once, and none below 0
        gone: NDArray[np.int64] = touched[np.diff(allowed_items(self.index, touched, rules).rows) == 0]
        if len(gone) > self._excluded:
            what = f"request {place} excludes {len(gone)} semantic IDs, the graph takes {self._excluded}"
            raise RequestError(what, hint="exclude the latest only, or export the graph with a larger export.max_excluded")
        return gone

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
    known = np.where(entries_N >= 0, entries_N, 0)
    begins, ends = (index.arrays["item_rows"][known + more].astype(np.int64) for more in (0, 1))
    counts = np.where(entries_N >= 0, ends - begins, 0)
    owner = np.repeat(np.arange(len(entries_N)), counts)
    place = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(begins, counts)
    ids = index.arrays["items"][place].astype(np.int64)
    kept = np.ones(len(ids), np.bool_)
    if rules.restricts_categories:
        kept &= _fulfilling(index, rules)[index.arrays["item_patterns"][place]]
    if len(rules.excluded):
        excluded = np.sort(np.asarray(rules.excluded, np.int64))
        kept &= excluded[np.minimum(np.searchsorted(excluded, ids), len(excluded) - 1)] != ids
    rows: NDArray[np.int64] = np.concatenate([[0], np.bincount(owner[kept], minlength=len(entries_N)).cumsum()]).astype(np.int64)
    return FoundItems(ids[kept], rows)


def open_rules(io: GraphIO, requests: int) -> dict[str, Array]:
    """The inputs that carry no rules but the graph's own number of beams, by name; none for a graph with open beams."""
    if not io.has(Role.REQUEST_LIMITS):
        return {}
    roles = (Role.REQUEST_LIMITS, Role.ALLOWED_CLASSES, Role.EXCLUDED_SIDS)
    inputs: dict[str, Array] = {io.name(role): np.zeros((requests, io.tensor(role).dims[-1]), np.int32) for role in roles}
    inputs[io.name(Role.REQUEST_LIMITS)][:, 0] = io.tensor(Role.ITEM_SCORES).dims[-1]
    return inputs


def _fulfilling(index: ItemIndex, rules: ItemRules) -> NDArray[np.bool_]:
    """Which of the catalogue's patterns of category bits fulfil the rule."""
    if not all(0 <= bits < 1 << MAX_CATEGORIES for bits in (rules.required, rules.forbidden)):
        raise RequestError("category bits are beyond 64 bits", hint="required and forbidden are masks of categories 0 to 63")
    patterns = index.arrays["patterns"].astype(np.uint64, copy=False)
    fulfilled = (patterns & np.uint64(rules.forbidden)) == 0
    if rules.required:
        fulfilled &= (patterns & np.uint64(rules.required)) != 0
    return np.asarray(fulfilled)
