"""Fidelity in the terminal: one row per system, the metrics that decide as columns; the page and the JSON file have all of them."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...fidelity.metrics import TOP1
from ...fidelity.table import FidelityTable, Row
from ..terminal import compact_table


def fidelity_text(table: FidelityTable) -> Table:
    """Values, and below each its 99 % interval: of the difference from FP32 where FP32 has the metric."""
    width = table.width
    shown = compact_table(Text(f"Fidelity of {table.model}, {table.engine}, {table.requests} requests, 99 % paired intervals"))
    shown.add_column("system", overflow="fold")
    metrics = list(dict.fromkeys((f"hit@{min(10, width)}", f"hit@{width}", f"overlap@{width}", TOP1, "score error, nat")))
    for metric in metrics:
        shown.add_column(metric.replace(TOP1, "top-1").replace(", nat", "\nnat"), justify="right", no_wrap=True)
    fp32 = {cell.metric: cell.fp32 for row in table.rows for cell in row.cells if row.beside == "FP32" and cell.fp32 is not None}
    shown.add_row("FP32", *(f"{fp32[metric]:.4f}" if metric in fp32 else "" for metric in metrics))
    for row in table.rows:
        beside = "" if row.beside == "FP32" else f"\nbeside {row.beside}"
        shown.add_row(escape(row.system + beside), *(_cell(row, metric) for metric in metrics))
    return shown


def _cell(row: Row, metric: str) -> Text:
    found = next((cell for cell in row.cells if cell.metric == metric), None)
    if found is None:
        return Text("—")
    low, high = found.interval
    sign = "+" if found.fp32 is not None else ""
    return Text(f"{found.value:.4f}\n").append(f"{low:{sign}.4f}\n{high:{sign}.4f}", style="dim")
