"""Times several candidates in turns, so that clocks and temperature drift for all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from ...core.progress import progress_bar

Name = TypeVar("Name", bound=Hashable)
Run = Callable[[], object]  # one batch


def interleaved_ms(
    candidates: Mapping[Name, Run], samples: int, synchronize: Callable[[], None], warm_up: int = 3
) -> dict[Name, list[float]]:
    """Wall-clock milliseconds of each candidate, one sample of each per round, in an order that is drawn anew for every round.

    At its power limit a GPU lowers its clock after a candidate that draws much power. So no candidate always follows the same one.

    Args:
        candidates: What to time, by name.
        samples: Rounds.
        synchronize: Waits for the GPU; called before and after each sample.
        warm_up: Runs of each candidate before the first round.
    """
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    taken: dict[Name, list[float]] = {name: [] for name in candidates}
    order, draw = list(candidates), random.Random(0)
    with progress_bar("samples", samples) as advance:
        for _ in range(samples):
            draw.shuffle(order)
            for name in order:
                synchronize()
                started = time.perf_counter()
                candidates[name]()
                synchronize()
                taken[name].append((time.perf_counter() - started) * 1e3)
            advance()
    return taken


def rounded(samples: Sequence[float]) -> list[float]:
    """As files keep them: milliseconds with three digits behind the point."""
    return [round(sample, 3) for sample in samples]


def sustained_ms(run: Run, synchronize: Callable[[], None], seconds: float = 1.0, warm_up: float = 0.3) -> list[float]:
    """Wall-clock milliseconds of one candidate's batches, one right after the other, once it has run for `warm_up` seconds.

    That is longer than a GPU takes to reach its power limit. At least two batches are timed.
    """
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - begun < warm_up + seconds:
        started = time.perf_counter()
        run()
        synchronize()
        if started - begun >= warm_up:
            taken.append((time.perf_counter() - started) * 1e3)
    return taken


def summary(samples_ms: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, interpolated between samples."""
    deciles = statistics.quantiles(samples_ms, n=10, method="inclusive")
    return {"median": statistics.median(samples_ms), "p10": deciles[0], "p90": deciles[-1]}
