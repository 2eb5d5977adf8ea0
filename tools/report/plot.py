"""A plot of the report, and what all of them share: heights that fit the number of rows, and logarithmic axes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

__all__ = ["Plot", "floor_of", "get_plotlyjs", "log_axis", "rows_axis", "rows_height"]


@dataclass(frozen=True)
class Plot:
    """A titled figure; `caption` says what to look for. Colors of text and grid come from the page's template."""

    slug: str
    title: str
    caption: str
    figure: go.Figure

    @property
    def data(self) -> dict[str, Any]:
        """The figure as plain JSON values, without the template plotly adds by itself."""
        values: dict[str, Any] = json.loads(self.figure.to_json())
        values["layout"].pop("template", None)
        return values

    @property
    def height(self) -> int:
        return int(self.figure.layout.height)


def rows_height(rows: int, *, per_row: int = 18, around: int = 110) -> int:
    """Height in pixels of a figure with one line per row; many rows get thinner, never below what a mark needs."""
    return around + rows * (per_row if rows <= 80 else max(8, per_row * 80 // rows))


def log_axis(title: str, values: Iterable[float], *, ticks: int = 10) -> dict[str, Any]:
    """A logarithmic axis over the whole decades that hold all positive values; about `ticks` powers of ten are named."""
    logs = [math.log10(value) for value in values if value > 0]
    first, last = (math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)) if logs else (-1, 1)
    step = 1 + (last - first) // ticks
    margin = 0.03 * (last - first)  # a mark on the edge stays whole
    return {
        "type": "log",
        "title": {"text": title},
        "exponentformat": "power",
        "dtick": step,
        "tickangle": 0,
        "tickfont": {"size": 10},
        "range": (first - margin, last + margin),
    }


def floor_of(values: Iterable[float | None]) -> float:
    """Where zeros are drawn on a logarithmic axis: a decade below the smallest positive value."""
    positive = [value for value in values if value is not None and value > 0]
    return 10.0 ** (math.floor(math.log10(min(positive))) - 1) if positive else 1e-9


def rows_axis(rows: int) -> dict[str, Any]:
    """An axis of names from top to bottom, without room above and below."""
    return {"range": (rows - 0.5, -0.5), "dtick": 1}
