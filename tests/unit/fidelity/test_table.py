"""Rows, intervals and bars of the fidelity table; packed models of a trained reference stand in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core.artifacts import read_json, write_json
from onerec_trt.fidelity.outputs import EngineOutputs, System
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.fidelity.packed_systems import packed_systems, run_packed
from onerec_trt.fidelity.table import Cell, FidelityTable, Row, bars, fidelity_table
from onerec_trt.tools.fidelity.fidelity_page import write_fidelity
from onerec_trt.validation.confidence_interval import mean_intervals, paired_interval

from .conftest import Trained


@pytest.fixture(scope="module")
def table(trained: Trained) -> FidelityTable:
    systems = packed_systems(trained.fp32, ("fp16", "fp8-static", "fp8-paper"), trained.input_amax)
    again = run_packed(trained.fp32, PackedSource(trained.fp32.model, "fp16", {}), "fp16, another batch", 7)
    assert trained.heldout.targets_n3 is not None
    return fidelity_table("toy", "pytorch", systems, trained.fp32.reference, trained.heldout.targets_n3, [(systems[0], again)])


def test_fp16_and_a_second_run_of_it_are_the_noise_floor(table: FidelityTable) -> None:
    assert [(row.system, row.standing, row.beside) for row in table.rows] == [
        ("fp16", "noise floor", "FP32"),
        ("fp8-static", "quantized", "FP32"),
        ("fp8-paper", "quantized", "FP32"),
        ("fp16, another batch", "noise floor", "fp16"),
    ]


def test_fp8_errs_more_than_fp16_and_a_second_run_least(table: FidelityTable) -> None:
    fp16, static, paper, again = (row.cell("score error, nat").value for row in table.rows)
    assert again <= 1e-5 < fp16 < 0.2 * paper
    assert fp16 < 0.2 * static
    assert table.rows[-1].cell("overlap@16").value > 0.999


def test_every_value_lies_in_its_interval(table: FidelityTable) -> None:
    for row in table.rows:
        for cell in row.cells:
            assert cell.interval[0] <= cell.difference + 1e-12
            assert cell.difference <= cell.interval[1] + 1e-12


def test_intervals_of_columns_are_those_of_each_by_itself() -> None:
    values = np.random.default_rng(0).random((50, 2))
    for column, interval in enumerate(mean_intervals(values)):
        assert interval == pytest.approx(paired_interval(values[:, column], np.zeros(50)))


def row(system: str, hit10: float, hit512: float, overlap: float, top1: float, *, low: float = -0.001) -> Row:
    def cell(metric: str, value: float, fp32: float | None) -> Cell:
        return Cell(metric=metric, better="more", value=value, fp32=fp32, interval=(low, 0.001), requests=100)

    standing = "noise floor" if system == "fp16" else "quantized"
    cells = (
        cell("hit@10", hit10, 0.5),
        cell("hit@512", hit512, 0.8),
        cell("overlap@512", overlap, None),
        cell("top-1 outside the tie band", top1, None),
    )
    return Row(system=system, standing=standing, beside="FP32", cells=cells)


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ((0.5, 0.8, 0.96, 0.995), []),
        ((0.6, 0.9, 1.0, 1.0), []),
        ((0.4995, 0.8, 0.96, 0.995), []),  # 0.1 % below
        ((0.497, 0.8, 0.96, 0.995), ["relative loss of hit@10"]),  # 0.6 % below
        ((0.5, 0.79, 0.96, 0.995), ["relative loss of hit@512"]),
        ((0.5, 0.8, 0.94, 0.98), ["overlap@512", "top-1 outside the tie band"]),
    ],
)
def test_the_bars(values: tuple[float, float, float, float], failed: list[str]) -> None:
    rows = (row("fp16", 0.5, 0.8, 0.99, 1.0), row("fp8-row", *values))
    found = bars(FidelityTable(model="m", engine="e", requests=100, width=512, tie_band=0.01, rows=rows))
    assert [gate.name for gate in found if not gate.passed] == failed
    assert {gate.recipe for gate in found} == {"fp8-row"}


def test_a_loss_that_fp16_may_have_too_passes() -> None:
    rows = (row("fp16", 0.5, 0.8, 0.99, 1.0, low=-0.01), row("fp8-row", 0.495, 0.8, 0.96, 0.995))
    table = FidelityTable(model="m", engine="e", requests=100, width=512, tie_band=0.01, rows=rows)
    assert all(gate.passed for gate in bars(table))


def test_a_metric_without_requests_has_no_cell(trained: Trained) -> None:
    """Where all of FP32's first places are ties, there is no top-1."""
    reference = trained.fp32.reference
    tied = type(reference)(**{**vars(reference), "scores_nW": np.zeros_like(reference.scores_nW)})
    outputs = EngineOutputs(reference.sids_nW3, reference.scores_nW, reference.scoring_nW3)
    assert trained.heldout.targets_n3 is not None
    table = fidelity_table("toy", "pytorch", [System("fp16", "noise floor", outputs)], tied, trained.heldout.targets_n3)
    assert "top-1 outside the tie band" not in [cell.metric for cell in table.rows[0].cells]


def test_a_first_place_that_nothing_decides_reaches_no_bar() -> None:
    undecided = row("fp8-row", 0.5, 0.8, 0.96, 0.995)
    undecided = undecided.model_copy(update={"cells": undecided.cells[:-1]})
    table = FidelityTable(model="m", engine="e", requests=100, width=512, tie_band=0.01, rows=(undecided,))
    (missed,) = (gate for gate in bars(table) if not gate.passed)
    assert missed.sentence() == "top-1 outside the tie band: not finite, must be >= 0.99 (no request lies outside the tie band)"


def test_hits_of_a_model_that_hits_nothing_reach_no_bar() -> None:
    none = row("fp8-row", 0.0, 0.0, 0.96, 0.995)
    none = none.model_copy(update={"cells": tuple(each.model_copy(update={"fp32": each.fp32 and 0.0}) for each in none.cells)})
    table = FidelityTable(model="m", engine="e", requests=100, width=512, tie_band=0.01, rows=(none,))
    missed = [gate for gate in bars(table) if not gate.passed]
    assert [(gate.name, gate.value) for gate in missed] == [("relative loss of hit@10", None), ("relative loss of hit@512", None)]


def test_a_page_without_bars_does_not_say_that_they_are_reached(trained: Trained, tmp_path: Path) -> None:
    reference = trained.fp32.reference
    outputs = EngineOutputs(reference.sids_nW3, reference.scores_nW, reference.scoring_nW3)
    assert trained.heldout.targets_n3 is not None
    for standing, headline in (("noise floor", "No bars: nothing here is quantized"), ("quantized", "Every bar is reached")):
        table = fidelity_table("toy", "pytorch", [System("one", standing, outputs)], reference, trained.heldout.targets_n3)
        write_fidelity(table, tmp_path / "table.html")
        page = (tmp_path / "table.html").read_text()
        assert [words in page for words in ("No bars: nothing here is quantized", "Every bar is reached")].count(True) == 1
        assert headline in page


def test_a_system_that_gives_nan_misses_bars_and_has_a_row(trained: Trained, tmp_path: Path) -> None:
    """NaN puts it behind everything: its items are FP32's worst, and the files say so."""
    reference = trained.fp32.reference
    broken = EngineOutputs(
        reference.sids_nW3[:, ::-1].copy(), reference.scores_nW[:, ::-1].copy(), np.full_like(reference.scoring_nW3, np.nan)
    )
    assert trained.heldout.targets_n3 is not None
    table = fidelity_table("toy", "pytorch", [System("fp8-row", "quantized", broken)], reference, trained.heldout.targets_n3)
    write_json(tmp_path / "table.json", table.model_dump(mode="json"))
    again = FidelityTable.model_validate(read_json(tmp_path / "table.json"))
    assert np.isnan(again.rows[0].cell("score error, nat").value)
    assert [bar.passed for bar in bars(again)] == [bar.passed for bar in bars(table)]
    write_fidelity(again, tmp_path / "table.html")
    assert "nan" in (tmp_path / "table.html").read_text()
