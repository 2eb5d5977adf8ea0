"""Fidelity in the terminal: one table per model, metrics as rows and systems as columns."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ...fidelity.table import Cell, FidelityTable
from ..terminal import compact_table


def fidelity_text(table: FidelityTable) -> Table:
    """One row per metric and system: its value, FP32's, and the interval."""
    shown = compact_table(f"Fidelity of {table.model} on {table.engine}: {table.requests} requests, {table.width} items each")
    shown.add_column("metric", overflow="fold")
    shown.add_column("system", overflow="fold")
    for heading in ("value", "FP32", "99 % interval"):
        shown.add_column(heading, justify="right", no_wrap=True)
    metrics = list(dict.fromkeys(cell.metric for row in table.rows for cell in row.cells))
    for metric in metrics:
        for number, row in enumerate(table.rows):
            beside = "" if row.beside == "FP32" else f" beside {row.beside}"
            cells = _cells(next((cell for cell in row.cells if cell.metric == metric), None))
            shown.add_row(metric if number == 0 else "", escape(f"{row.system}{beside}"), *cells, end_section=number + 1 == len(table.rows))
    return shown


def _cells(cell: Cell | None) -> tuple[str, str, str]:
    if cell is None:
        return "—", "", ""
    low, high = cell.interval
    return f"{cell.value:.5g}", "" if cell.fp32 is None else f"{cell.fp32:.5g}", f"[{low:.3g}, {high:.3g}]"
