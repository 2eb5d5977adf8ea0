"""Whether answers of a model that follows a catalogue are what the catalogue that they name has, and allowed: counted for a whole load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import ItemRules, allowed_items
from ...server.client import Items


class AnswerCounts(BaseModel):
    """What a load's answers hold, those of its warm-up among them.

    Args:
        by_catalogue: Answered contexts by the digest of the catalogue that they name.
        found: Semantic IDs in them.
        wrong: Places whose item ids are not those that the named catalogue has for the semantic ID and the rules allow, at least one.
    """

    model_config = ConfigDict(extra="forbid")

    by_catalogue: dict[str, int]
    found: int
    wrong: int


class AnswerCheck:
    """Counts answers.

    Args:
        indexes: Of all catalogues that may be named.
    """

    def __init__(self, indexes: Sequence[ItemIndex]) -> None:
        self._indexes = {index.digest: index for index in indexes}
        self._by_catalogue: Counter[str] = Counter()
        self._found = self._wrong = 0

    def count(self, answers: Sequence[Items], rules: Sequence[ItemRules]) -> None:
        """Answers to contexts with these rules."""
        for items, rule in zip(answers, rules, strict=True):
            self._by_catalogue[items.catalogue or ""] += 1
            self._found += int((items.sids_W3[:, 0] >= 0).sum())
            self._wrong += self._wrong_places(items, rule)

    def counts(self) -> AnswerCounts:
        """Of everything so far."""
        return AnswerCounts(by_catalogue=dict(self._by_catalogue), found=self._found, wrong=self._wrong)

    def _wrong_places(self, items: Items, rules: ItemRules) -> int:
        index = self._indexes.get(items.catalogue or "")
        if index is None:
            return len(items.ids)
        allowed = allowed_items(index, index.entries_of(items.sids_W3), rules)
        found = items.sids_W3[:, 0] >= 0
        return sum(bool(ids) != found[place] or list(ids) != allowed.at(place) for place, ids in enumerate(items.ids))


def all_counts(parts: Iterable[AnswerCounts]) -> AnswerCounts:
    """Of several processes."""
    by_catalogue: Counter[str] = Counter()
    found = wrong = 0
    for part in parts:
        by_catalogue.update(part.by_catalogue)
        found, wrong = found + part.found, wrong + part.wrong
    return AnswerCounts(by_catalogue=dict(by_catalogue), found=found, wrong=wrong)
