"""A measurement as the tables of the docs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .payload import WAY_OF_A_BATCH
from .result import BareRate, MeasuredLoad, ServingResult


def table(result: ServingResult) -> str:
    """Markdown: rows for the bare runtime, first samples and sustained, and one for each load."""
    rows = ["| what | requests/s | p50, ms | p99, ms | GPU busy |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*rows, *_bare_rows(result), *map(_row, result.loads)])


def payload_table(payload_ms: Mapping[str, Sequence[float]]) -> str:
    """Markdown: the median of each step that a batch's payload takes, their sum, and of what it could take instead."""
    medians = {step: statistics.median(samples) for step, samples in payload_ms.items()}
    steps = {step: medians[step] for step in WAY_OF_A_BATCH if step in medians}
    others = {step: median for step, median in medians.items() if step not in steps}
    rows = {**steps, "sum": sum(steps.values()), **others}
    return "\n".join(["| payload of a batch | ms |", "| --- | --- |", *(f"| {step} | {ms:.2f} |" for step, ms in rows.items())])


def _bare_rows(result: ServingResult) -> list[str]:
    if (summary := result.summary) is None:
        return []
    first = BareRate(batch_ms=summary.bare_batch_ms, requests_per_s=summary.bare_requests_per_s)
    kinds = {"first samples": first} if summary.bare is None else {"first samples": summary.bare.first, "sustained": summary.bare.sustained}
    largest = max(result.times_ms)
    return [
        f"| bare runtime, batches of {largest}, {kind} | {bare.requests_per_s:.0f} | {bare.batch_ms:.1f} | | |"
        for kind, bare in kinds.items()
    ]


def _row(load: MeasuredLoad) -> str:
    seen = load.result
    busy = ", ".join(f"{share:.0%}".replace("%", " %") for share in load.gpu_busy)
    return f"| {load.name} | {seen.requests_per_s:.0f} | {seen.p50_ms:.1f} | {seen.p99_ms:.1f} | {busy} |"
