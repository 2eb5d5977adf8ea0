"""The fidelity table: every metric of every system with its paired interval, the noise floor among the rows, and the bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..validation.confidence_interval import Interval, mean_intervals
from ..validation.fp32_reference import Reference
from ..validation.gates import Gate, Measured, gate
from .metrics import TOP1, Metric, Sids, Values, metrics, tie_band
from .outputs import Standing, System

HIT_LOSS = 0.002  # relative
OVERLAP, SAME_FIRST = 0.95, 0.99


class Cell(BaseModel):
    """One metric of one system: its mean, FP32's, and the 99 % paired bootstrap interval.

    `interval` is that of the difference from FP32 where FP32 has a value, else that of the mean itself. `requests` counts those that count.
    In a row beside another system, that one stands in FP32's place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    better: Literal["more", "less"]
    value: Measured
    fp32: Measured | None
    interval: tuple[Measured, Measured]
    requests: int

    @property
    def difference(self) -> float:
        """From FP32; of a metric that is a distance already, its value."""
        return self.value if self.fp32 is None else self.value - self.fp32


class Row(BaseModel):
    """One system. `beside`: what it is compared with, `FP32` or another system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    standing: Standing
    beside: str
    cells: tuple[Cell, ...]

    def cell(self, metric: str) -> Cell:
        """The cell of a metric."""
        return next(cell for cell in self.cells if cell.metric == metric)


class FidelityTable(BaseModel):
    """All rows of one model on one set of requests. `tie_band`: in nat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    engine: str
    requests: int
    width: int
    tie_band: float
    rows: tuple[Row, ...]


def fidelity_row(system: System, fp32: Reference, targets_n3: Sids, beside: System | None = None) -> Row:
    """The row of a system beside FP32, or beside another system."""
    measured = metrics(system.outputs, fp32, targets_n3, None if beside is None else beside.outputs)
    counted = [metric for metric in measured if len(metric.values_n)]
    everywhere = [metric for metric in counted if len(metric.values_n) == len(targets_n3)]
    together = mean_intervals(np.stack([_compared(metric) for metric in everywhere], 1))
    intervals = dict(zip((metric.name for metric in everywhere), together, strict=True))
    for metric in counted:  # those of fewer requests, by themselves
        if metric.name not in intervals:
            intervals[metric.name] = mean_intervals(_compared(metric)[:, None])[0]
    cells = tuple(_cell(metric, intervals[metric.name]) for metric in counted)
    return Row(system=system.name, standing=system.standing, beside="FP32" if beside is None else beside.name, cells=cells)


def fidelity_table(
    model: str,
    engine: str,
    systems: Sequence[System],
    fp32: Reference,
    targets_n3: Sids,
    repeats: Sequence[tuple[System, System]] = (),
) -> FidelityTable:
    """The table of several systems on the same requests.

    Args:
        model: What it is of.
        engine: What ran the systems.
        systems: Beside FP32, the noise floor first.
        fp32: FP32's beams and scores.
        targets_n3: The true next items.
        repeats: Pairs of systems that hold the same numbers, such as a plan and the same plan built again: what they differ in is noise.
    """
    rows = [fidelity_row(system, fp32, targets_n3) for system in systems]
    rows += [fidelity_row(again, fp32, targets_n3, first) for first, again in repeats]
    return table_of_rows(model, engine, rows, fp32)


def table_of_rows(model: str, engine: str, rows: Sequence[Row], fp32: Reference) -> FidelityTable:
    """The table of rows that stand beside these FP32 answers."""
    requests, width, _ = fp32.sids_nW3.shape
    return FidelityTable(model=model, engine=engine, requests=requests, width=width, tie_band=tie_band(fp32), rows=tuple(rows))


def bars(table: FidelityTable) -> list[Gate]:
    """What a quantized system has to reach, one gate each: hits of FP32, overlap at the whole width, the first place.

    A hit rate passes within 0.2 % of FP32's, or where FP16's own interval holds the difference. Where nothing can be said, because FP32
    hits no target or every first place lies inside the tie band, the bar is not reached.
    """
    fp16 = next((row for row in table.rows if row.standing == "noise floor" and row.beside == "FP32"), None)
    found: list[Gate] = []
    for row in table.rows:
        if row.standing != "quantized":
            continue
        for metric in dict.fromkeys((f"hit@{min(10, table.width)}", f"hit@{table.width}")):
            found.append(_hit_bar(row, metric, None if fp16 is None else fp16.cell(metric)))
        found.append(gate(f"overlap@{table.width}", row.system, row.cell(f"overlap@{table.width}").value, ">=", OVERLAP))
        found.append(_first_place_bar(row))
    return found


def _first_place_bar(row: Row) -> Gate:
    cell = next((cell for cell in row.cells if cell.metric == TOP1), None)
    if cell is None:
        return gate(TOP1, row.system, math.nan, ">=", SAME_FIRST, "no request lies outside the tie band")
    return gate(TOP1, row.system, cell.value, ">=", SAME_FIRST)


def _hit_bar(row: Row, metric: str, fp16: Cell | None) -> Gate:
    cell = row.cell(metric)
    assert cell.fp32 is not None
    loss = max(0.0, -cell.difference / cell.fp32) if cell.fp32 else math.nan
    allowed = HIT_LOSS
    if fp16 is not None and fp16.fp32:
        allowed = max(allowed, -fp16.interval[0] / fp16.fp32)
    detail = f"{cell.value:.4f}, FP32 {cell.fp32:.4f}, paired 99 % interval [{cell.interval[0]:.4f}, {cell.interval[1]:.4f}]"
    return gate(f"relative loss of {metric}", row.system, loss, "<=", allowed, detail)


def _compared(metric: Metric) -> Values:
    return metric.values_n if metric.fp32_n is None else metric.values_n - metric.fp32_n


def _cell(metric: Metric, interval: Interval) -> Cell:
    return Cell(
        metric=metric.name,
        better="more" if metric.better > 0 else "less",
        value=float(metric.values_n.mean()),
        fp32=None if metric.fp32_n is None else float(metric.fp32_n.mean()),
        interval=interval,
        requests=len(metric.values_n),
    )
