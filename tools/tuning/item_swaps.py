"""A catalogue swapped while batches run: what staging and swapping take, how long a batch waits, and whether every answer is of one
catalogue. For any runner that takes a catalogue.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import ItemRules
from ...runtime.item_runner import ItemBatch, ItemRunner, PendingItems, ResidentRunner, Submitted

_UNDER_WAY = 2  # batches submitted while one is waited for: the GPU always has the next one
_IDLE_SWAPS = 10
Answered = tuple[float, ItemBatch]  # when it came, in seconds


class TimedRunner:
    """Passes everything on, and notes the milliseconds of staging a catalogue, of binding it, and of submitting a batch."""

    def __init__(self, runner: ResidentRunner) -> None:
        self._runner, self.io = runner, runner.io
        self.stage_ms: list[float] = []
        self.bind_ms: list[float] = []
        self.submit_ms: list[float] = []

    def stage_residents(self, arrays: Mapping[str, Any], /) -> Any:
        with _noted(self.stage_ms):
            return self._runner.stage_residents(arrays)

    def bind_staged(self, staged: Any, /) -> None:
        with _noted(self.bind_ms):
            self._runner.bind_staged(staged)

    def submit(self, inputs: Mapping[str, Any], /) -> Submitted:
        with _noted(self.submit_ms):
            return self._runner.submit(inputs)

    def forget(self) -> None:
        """Drop what was noted so far."""
        for noted in (self.stage_ms, self.bind_ms, self.submit_ms):
            noted.clear()


@contextmanager
def _noted(taken_ms: list[float]) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    taken_ms.append((time.perf_counter() - begun) * 1e3)


def swaps_under_load(
    runner: ResidentRunner,
    indexes: Sequence[ItemIndex],
    inputs: Mapping[str, Any],
    rules: Sequence[ItemRules],
    *,
    swaps: int,
    batches: int,
    synchronize: Callable[[], None],
) -> dict[str, Any]:
    """Batches back to back: first alone, then while another thread swaps between catalogues.

    Args:
        runner: Runs the graph.
        indexes: Catalogues, which are served in turns.
        inputs: Of one batch, on the host, without its rules.
        rules: Of each request.
        swaps: How many.
        batches: At least so many, alone and beside swaps.
        synchronize: Waits for the GPU.
    """
    timed = TimedRunner(runner)
    server = ItemRunner(timed, indexes[0])
    idle_ms = _idle_swaps_ms(timed, server, indexes[0], synchronize)
    expected = {index.digest: _answer_of(server, index, inputs, rules) for index in indexes}
    alone = _answers(server, inputs, rules, batches)
    longest_submit_ms = max(timed.submit_ms)
    timed.forget()  # of these only what happened beside swaps counts below
    whole_ms: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(_swap_often, server, indexes, swaps, whole_ms)
        beside = _answers(server, inputs, rules, batches, swapping)
        swapping.result()
    return {
        "swaps": len(whole_ms),
        "swap_ms": round(statistics.median(idle_ms), 3),
        "longest_swap_ms": round(max(idle_ms), 3),
        "longest_enqueue_ms": round(max(timed.bind_ms), 3),
        "stage_ms": round(statistics.median(timed.stage_ms), 3),
        "from_call_to_served_ms": round(statistics.median(whole_ms), 3),
        "longest_submit_ms": round(longest_submit_ms, 3),
        "longest_submit_ms_beside_swaps": round(max(timed.submit_ms), 3),
        **_batch_times(_gaps_ms(alone), _gaps_ms(beside)),
        "answers": len(beside),
        "answers_of_each_catalogue": [sum(batch.catalogue == index.digest for _, batch in beside) for index in indexes],
        "wrong_answers": sum(not _same(batch, expected[batch.catalogue]) for _, batch in (*alone, *beside)),
    }


def _idle_swaps_ms(timed: TimedRunner, server: ItemRunner, index: ItemIndex, synchronize: Callable[[], None]) -> list[float]:
    """From the call to its end on the GPU, with nothing else to do there; the content is staged already."""
    staged = timed.stage_residents(index.resident(server.io))
    taken = []
    for _ in range(_IDLE_SWAPS):
        synchronize()
        begun = time.perf_counter()
        timed.bind_staged(staged)
        synchronize()
        taken.append((time.perf_counter() - begun) * 1e3)
    return taken


def _answer_of(server: ItemRunner, index: ItemIndex, inputs: Mapping[str, Any], rules: Sequence[ItemRules]) -> ItemBatch:
    """What a batch finds with a catalogue, while nothing else runs."""
    server.swap(index)
    return server(inputs, rules)


def _answers(
    server: ItemRunner, inputs: Mapping[str, Any], rules: Sequence[ItemRules], batches: int, beside: Future[None] | None = None
) -> list[Answered]:
    """At least so many answers, and until the other work has ended."""
    under_way: deque[PendingItems] = deque()
    found: list[Answered] = []

    def fetch() -> None:
        batch = under_way.popleft().result()
        found.append((time.perf_counter(), batch))

    while len(found) < batches or (beside is not None and not beside.done()):
        under_way.append(server.submit(inputs, rules))
        if len(under_way) > _UNDER_WAY:
            fetch()
    while under_way:
        fetch()
    return found


def _swap_often(server: ItemRunner, indexes: Sequence[ItemIndex], swaps: int, taken_ms: list[float]) -> None:
    for swap in range(swaps):
        with _noted(taken_ms):
            server.swap(indexes[swap % len(indexes)])


def _batch_times(alone_ms: Sequence[float], beside_ms: Sequence[float]) -> dict[str, Any]:
    """How long a batch took, by the gaps between answers; a stall is what the longest one beside swaps took too long, in batches."""
    batch_ms = statistics.median(alone_ms)
    return {
        "batch_ms": round(batch_ms, 3),
        "longest_batch_ms": round(max(alone_ms), 3),
        "batch_ms_beside_swaps": round(statistics.median(beside_ms), 3),
        "longest_batch_ms_beside_swaps": round(max(beside_ms), 3),
        "longest_stall_in_batches": round(max(beside_ms) / batch_ms - 1, 3),
        "gaps_ms_beside_swaps": [round(gap, 3) for gap in beside_ms],
    }


def _gaps_ms(answers: Sequence[Answered]) -> list[float]:
    """Time from answer to answer."""
    return [(after - before) * 1e3 for (before, _), (after, _) in pairwise(answers)]


def _same(batch: ItemBatch, expected: ItemBatch) -> bool:
    """Whether semantic IDs, scores and item ids are those of the same catalogue, bit by bit."""
    same_items = all(
        np.array_equal(a.ids, b.ids) and np.array_equal(a.rows, b.rows) for a, b in zip(batch.items, expected.items, strict=True)
    )
    return same_items and np.array_equal(batch.sids_BW3, expected.sids_BW3) and np.array_equal(batch.scores_BW, expected.scores_BW)
