"""What the terminal and the page show of a benchmark's result: latency, throughput, distance from the limits.

The page has one row per candidate with every cell. The terminal has a narrower table for each model and batch shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..terminal import compact_table
from .result import Result
from .roofline import stand_in

HEADINGS = (
    *("model", "batch x beam x context", "engine", "recipe"),
    *("median, ms", "p10 to p90", "requests/s", "x limit", "x limit, FP8 linears only"),
)
WORDS = 4  # columns of words; the others hold numbers


def results_with_limits(report: dict[str, Any]) -> Iterator[tuple[Result, dict[str, float]]]:
    """Each result with the limits of its shape."""
    limits = report["environment"]["limits_ms"]
    for values in report["results"]:
        same = (entry for entry in limits if all(entry[name] == values[name] for name in ("model", "batch", "beam", "context")))
        yield Result.model_validate(values), next(same)


def limits_of_another(environment: Mapping[str, Any]) -> list[str]:
    """Says so where the physical limits are those of another card; empty: they are the card's own."""
    whose = stand_in(environment["gpu"])
    return [f"limits: those of {whose}"] if whose else []


def candidate_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per candidate, as many cells as there are headings."""
    shown: list[tuple[str, ...]] = []
    for result, limits in results_with_limits(report):
        latency, partly = result.latency_ms, limits["fp8, attention and heads in 16-bit"]
        shown.append(
            (
                result.model,
                shape_text(result),
                result.engine,
                result.recipe,
                f"{latency.median:.1f}",
                f"{latency.p10:.1f} to {latency.p90:.1f}",
                f"{result.requests_per_s:.0f}",
                f"{latency.median / result.limit_ms:.2f}",
                f"{latency.median / partly:.2f}" if result.recipe.startswith("fp8") else "",
            )
        )
    return shown


def terminal_tables(report: dict[str, Any]) -> Iterator[Table]:
    """A table for each model and batch shape, at most 80 columns wide."""
    environment = report["environment"]
    machine = "\n".join([f"{environment['gpu']}, TensorRT {environment['tensorrt']}", *limits_of_another(environment)])
    for (model, shape), rows in groupby(candidate_rows(report), key=lambda row: row[:2]):
        table = compact_table(Text(f"{machine}\n{model}, batch x beam x context {shape}"))
        table.add_column("engine and recipe", overflow="fold")
        for heading in ("median\nms", "p10 to p90\nms", "requests\nper s", "x limit", "FP8\nlinears\nonly"):
            table.add_column(heading, justify="right", no_wrap=True)
        for _, _, engine, recipe, *numbers in rows:
            table.add_row(escape(f"{engine} {recipe}"), *numbers)
        yield table


def shape_text(measured: Result | Mapping[str, Any]) -> str:
    """Batch, beam and context of a result or of an entry with the same keys: '32 x 512 x 512'."""
    values = measured.model_dump() if isinstance(measured, Result) else measured
    beam = values["beam"] if isinstance(values["beam"], int) else "-".join(map(str, values["beam"]))
    return f"{values['batch']} x {beam} x {values['context']}"


def case_text(measured: Result | Mapping[str, Any]) -> str:
    """The same with the model's name before it."""
    return f"{measured.model if isinstance(measured, Result) else measured['model']}, {shape_text(measured)}"
