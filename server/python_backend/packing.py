"""Ragged requests, side by side in batches: which ones go together, and how their arrays are laid into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.arrays import Array
from ...core.graph_io import BATCH, CONTEXT, GraphIO, GraphTensor
from ..repository.limits import CONTEXT_STEP, Limits, longest_context, most_requests


@dataclass(frozen=True)
class Sizes:
    """One request: its contexts, and tokens of the longest one."""

    contexts: int
    tokens: int


@dataclass(frozen=True)
class Group:
    """Requests that share an execution, by their places in the queue: `rows` contexts, filled up to `tokens`."""

    places: tuple[int, ...]
    rows: int
    tokens: int


def rounded_context(limits: Sequence[Limits], tokens: int) -> int:
    """The next multiple of `CONTEXT_STEP`, so that few shapes occur; at most the longest one of each profile that takes so many tokens."""
    ends = [each.max_context for each in limits if tokens <= each.max_context]
    return min(-(-tokens // CONTEXT_STEP) * CONTEXT_STEP, *ends, longest_context(limits))


def groups(limits: Sequence[Limits], waiting: Sequence[Sizes]) -> list[Group]:
    """Divide requests, each of which some profile takes, into executions: oldest first, as many as a profile takes together."""
    found: list[Group] = []
    places: tuple[int, ...] = ()
    rows = tokens = 0
    for place, sizes in enumerate(waiting):
        together = max(tokens, rounded_context(limits, sizes.tokens))
        if places and rows + sizes.contexts > most_requests(limits, together):
            found.append(Group(places, rows, tokens))
            places, rows, tokens, together = (), 0, 0, rounded_context(limits, sizes.tokens)
        places, rows, tokens = (*places, place), rows + sizes.contexts, together
    return [*found, Group(places, rows, tokens)] if places else found


def fill(io: GraphIO, room: Mapping[str, Array], requests: Sequence[Mapping[str, Array]]) -> None:
    """Lay requests into arrays of a group's shape, one behind the other. Behind a context stays what is there: it changes nothing."""
    for tensor in io.per_request:
        row = 0
        for arrays in requests:
            given = arrays[tensor.name]
            contexts = given.shape[tensor.axes.index(BATCH)]
            room[tensor.name][_place(tensor, row, given.shape)] = given
            row += contexts


def _place(tensor: GraphTensor, row: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where the array of one request lies in that of its group."""
    starts = {BATCH: row, CONTEXT: 0}
    return tuple(
        slice(None) if isinstance(axis, int) else slice(starts[axis], starts[axis] + size)
        for axis, size in zip(tensor.axes, shape, strict=True)
    )
