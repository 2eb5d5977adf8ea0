"""What a batch answers each request: the rows of the model's outputs that are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ...core.arrays import Array
from ...core.errors import RequestError
from ...runtime.item_rules import ItemRules
from .engines import Engine

Answer = dict[str, Array] | RequestError


class Answers(Protocol):
    """Runs batches, and takes them apart."""

    def run(self, room: Mapping[str, Array], contexts: Sequence[int], rules: Sequence[Sequence[ItemRules]]) -> list[Answer]:
        """The outputs of each request of a batch, or what is wrong with its rules.

        Args:
            room: The batch's inputs, in memory that the engine gave.
            contexts: How many each request has.
            rules: Of each request, for each of its contexts.
        """


class PlainAnswers:
    """Of a model that follows no catalogue, and takes no rules.

    Args:
        engine: The loaded model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, room: Mapping[str, Array], contexts: Sequence[int], rules: Sequence[Sequence[ItemRules]]) -> list[Answer]:
        outputs = self._engine.run(room)
        return [{name: array[rows] for name, array in outputs.items()} for rows in rows_of(contexts)]


def rows_of(contexts: Sequence[int]) -> list[slice]:
    """The rows of each request in a batch."""
    found, first = [], 0
    for count in contexts:
        found.append(slice(first, first + count))
        first += count
    return found
