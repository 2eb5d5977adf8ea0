"""The fidelity table as one HTML page: every metric of every system, its interval, and the intervals drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go

from ...fidelity.table import Cell, FidelityTable, Row, bars
from ..report.measurement import Measured, write_measurement
from ..report.plot import Plot, rows_axis, rows_height
from ..report.theme import LIMIT_COLOR, color, label

HEADINGS = ("metric", "system", "beside", "value", "FP32", "99 % interval", "requests")


def write_fidelity(table: FidelityTable, path: Path) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    judged = bars(table)
    missed = [gate for gate in judged if not gate.passed]
    remarks = [
        f"{table.requests} held-out requests, {table.width} items each. The tie band is {table.tie_band:.2g} nat wide.",
        "An interval is that of the paired difference from FP32 where FP32 has the metric, else that of the metric itself.",
        *(f"{gate.recipe}: {gate.sentence()}" for gate in missed),
    ]
    measured = Measured(
        title="onerec-trt fidelity",
        machine=f"{table.model}, {table.engine}",
        good=bool(judged) and not missed,
        headline=_headline(len(judged), len(missed)),
        remarks=remarks,
        headings=HEADINGS,
        words=3,
        rows=[_row(row, cell) for metric in _metrics(table) for row in table.rows for cell in row.cells if cell.metric == metric],
        figures=list(_plots(table)),
        facts=[("intervals", "paired bootstrap over requests, 2000 resamples")],
    )
    write_measurement(measured, path)


def _headline(judged: int, missed: int) -> str:
    if not judged:
        return "No bars: nothing here is quantized"
    return f"Bars that are missed: {missed}" if missed else "Every bar is reached"


def _metrics(table: FidelityTable) -> list[str]:
    return list(dict.fromkeys(cell.metric for row in table.rows for cell in row.cells))


def _row(row: Row, cell: Cell) -> tuple[str, ...]:
    low, high = cell.interval
    fp32 = "" if cell.fp32 is None else f"{cell.fp32:.5g}"
    return (cell.metric, row.system, row.beside, f"{cell.value:.5g}", fp32, f"{low:.3g} to {high:.3g}", str(cell.requests))


def _plots(table: FidelityTable) -> Iterator[Plot]:
    """One plot of differences from FP32 and one of distances from it."""
    rows = [row for row in table.rows if row.beside == "FP32"]
    differences = [cell.metric for cell in rows[0].cells if cell.fp32 is not None]
    caption = "Difference from FP32 with its 99 % paired interval; an interval that holds 0 is chance."
    yield Plot("differences", "Hits and NDCG", caption, _intervals(rows, differences, "difference from FP32"))
    overlaps = [cell.metric for cell in rows[0].cells if cell.metric.startswith(("overlap", "top-1"))]
    caption = "1 is full agreement. The axis does not begin at 0."
    yield Plot("agreement", "Agreement with FP32", caption, _intervals(rows, overlaps, "share"))


def _intervals(rows: list[Row], metrics: list[str], title: str) -> go.Figure:
    figure = go.Figure()
    names = [label(metric) for metric in metrics]
    for place, row in enumerate(rows):
        cells = [row.cell(metric) for metric in metrics if any(cell.metric == metric for cell in row.cells)]
        figure.add_scatter(
            x=[cell.difference for cell in cells],
            y=[label(cell.metric) for cell in cells],
            mode="markers",
            orientation="h",
            name=label(row.system),
            marker={"size": 8, "color": color(place)},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [cell.interval[1] - cell.difference for cell in cells],
                "arrayminus": [cell.difference - cell.interval[0] for cell in cells],
            },
            hovertemplate="%{y}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )
    if title.startswith("difference"):
        figure.add_vline(0, line={"color": LIMIT_COLOR, "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text=title, range=_range(rows, metrics))
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=names)
    figure.update_layout(height=rows_height(len(names), per_row=70))
    return figure


def _range(rows: list[Row], metrics: list[str]) -> list[float]:
    """Of the axis: all intervals and some room, so that differences of a thousandth are seen beside 1."""
    ends = [end for row in rows for cell in row.cells if cell.metric in metrics for end in (*cell.interval, cell.difference)]
    room = 0.05 * (max(ends) - min(ends)) or 0.01
    return [min(ends) - room, max(ends) + room]
