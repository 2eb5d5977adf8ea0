"""The page of a measurement: whether it counts, its table, its plots, and where it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.artifacts import write_text
from .plot import Plot
from .shell import page


@dataclass(frozen=True)
class LongTable:
    """A table of hundreds of rows, for whoever looks something up. `words`: columns from the left that hold words, not numbers."""

    title: str
    headings: Sequence[str]
    words: int
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Measured:
    """What the page shows.

    Attributes:
        title: Heading of the page.
        machine: Where it was measured, in a line.
        good: Whether the measurement counts.
        headline: That in words.
        remarks: Sentences below it.
        headings: Of the table's columns.
        words: How many of them, from the left, hold words; the others hold numbers.
        rows: As many cells as there are headings.
        figures: In this order.
        facts: Names and values of the environment.
        details: Stands behind the plots. Default: there is none.
    """

    title: str
    machine: str
    good: bool
    headline: str
    remarks: Sequence[str]
    headings: Sequence[str]
    words: int
    rows: Sequence[Sequence[str]]
    figures: Sequence[Plot]
    facts: Sequence[tuple[str, Any]]
    details: LongTable | None = None


def write_measurement(measured: Measured, path: Path) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    write_text(path, page("measurement.html", measured.title, measured.figures, {"measured": measured}))
