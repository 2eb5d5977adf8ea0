"""A measurement as the table of the docs."""

from __future__ import annotations

from .result import BareRate, MeasuredLoad, ServingResult


def table(result: ServingResult) -> str:
    """Markdown: rows for the bare runtime, first samples and sustained, and one for each load."""
    rows = ["| what | requests/s | p50, ms | p99, ms | GPU busy |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*rows, *_bare_rows(result), *map(_row, result.loads)])


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
