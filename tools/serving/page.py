"""A measurement as the table of the docs."""

from __future__ import annotations

from .result import MeasuredLoad, ServingResult


def table(result: ServingResult) -> str:
    """Markdown: a row for the bare runtime and one for each load."""
    rows = ["| what | requests/s | p50, ms | p99, ms | GPU busy |", "| --- | --- | --- | --- | --- |"]
    if result.summary is not None:
        bare = result.summary
        largest = max(result.times_ms)
        rows.append(f"| bare runtime, batches of {largest} | {bare.bare_requests_per_s:.0f} | {bare.bare_batch_ms:.1f} | | |")
    return "\n".join([*rows, *map(_row, result.loads)])


def _row(load: MeasuredLoad) -> str:
    seen = load.result
    busy = ", ".join(f"{share:.0%}".replace("%", " %") for share in load.gpu_busy)
    return f"| {load.name} | {seen.requests_per_s:.0f} | {seen.p50_ms:.1f} | {seen.p99_ms:.1f} | {busy} |"
