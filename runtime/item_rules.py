"""Rules of a request about the items it may get: already seen ones, categories, and how many. Encoded for a graph and applied to items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.errors import RequestError
from ..core.graph_io import GraphIO, Role
from .item_index import ANY_CLASS, ItemIndex

NO_ITEM = -1  # code of a place for which there was no item
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
        limits = np.zeros((len(rules), 3), np.int32)
        allowed = np.zeros((len(rules), self._classes), np.int32)
        excluded = np.zeros((len(rules), self._excluded), np.int32)
        for place, each in enumerate(rules):
            entries = self._excluded_entries(each, place)
            limits[place] = self._beams(each, place), len(entries), each.restricts_categories
            excluded[place, : len(entries)] = entries
            if each.restricts_categories:
                allowed[place, : self.index.classes] = self._allowed(each)
        values = {Role.REQUEST_LIMITS: limits, Role.ALLOWED_CLASSES: allowed, Role.EXCLUDED_SIDS: excluded}
        return {self.io.name(role): array for role, array in values.items()}

    def items(self, sids_W3: NDArray[np.int64], rules: ItemRules) -> list[list[int]]:
        """The allowed items of each semantic ID, in ascending order of their ids; none where there was no item."""
        kept = _PatternRule(self.index, rules)
        excluded = np.asarray(rules.excluded, np.int64)
        found: list[list[int]] = []
        for entry in self.index.entries_of(sids_W3).tolist():
            found.append(kept.items(entry, excluded).tolist() if entry >= 0 else [])
        return found

    def _beams(self, rules: ItemRules, place: int) -> int:
        beams = self._width if rules.beams is None else rules.beams
        if not 1 <= beams <= self._width:
            what = f"request {place} asks for {beams} beams, the graph keeps 1 to {self._width}"
            raise RequestError(what, hint="ask for fewer, or export the graph with a larger export.beam")
        return beams

    def _excluded_entries(self, rules: ItemRules, place: int) -> NDArray[np.int64]:
        """Semantic IDs of which no item is left, ascending."""
        if not len(rules.excluded):
            return np.zeros(0, np.int64)
        excluded = np.asarray(rules.excluded, np.int64)
        touched = np.unique(self.index.entries_with(excluded))
        kept = _PatternRule(self.index, rules)
        gone = np.asarray([entry for entry in touched[touched >= 0].tolist() if not len(kept.items(entry, excluded))], np.int64)
        if len(gone) > self._excluded:
            what = f"request {place} excludes {len(gone)} semantic IDs, the graph takes {self._excluded}"
            raise RequestError(what, hint="exclude the latest only, or export the graph with a larger export.max_excluded")
        return gone

    def _allowed(self, rules: ItemRules) -> NDArray[np.int32]:
        """Of each class whether an item of it can fulfil the rule on categories; of ANY_CLASS it is not known, so it can."""
        rows, patterns = self.index.arrays["class_rows"], self.index.arrays["class_patterns"]
        fulfilled = np.append(_PatternRule(self.index, rules).fulfilled[patterns], False)
        allowed = np.logical_or.reduceat(fulfilled, rows[:-1].astype(np.int64)).astype(np.int32)
        allowed[ANY_CLASS] = 1
        return allowed


class _PatternRule:
    """Which category bits of the catalogue fulfil a request's rule."""

    def __init__(self, index: ItemIndex, rules: ItemRules) -> None:
        if not all(0 <= bits < 1 << MAX_CATEGORIES for bits in (rules.required, rules.forbidden)):
            raise RequestError("category bits are beyond 64 bits", hint="required and forbidden are masks of categories 0 to 63")
        patterns = index.arrays["patterns"].astype(np.uint64)
        fulfilled = (patterns & np.uint64(rules.forbidden)) == 0
        if rules.required:
            fulfilled &= (patterns & np.uint64(rules.required)) != 0
        self.index, self.fulfilled = index, fulfilled

    def items(self, entry: int, excluded: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the allowed items of a semantic ID, ascending."""
        place = self.index.items_at(entry)
        ids = self.index.arrays["items"][place].astype(np.int64)
        allowed = self.fulfilled[self.index.arrays["item_patterns"][place]]
        return ids[allowed & ~np.isin(ids, excluded)]
