"""Terminal tables: failed gates first, no markup from names, no color where NO_COLOR asks for none."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.records import Record
from onerec_trt.tools import inspection
from onerec_trt.tools.formats import bytes_text, number_text, seconds_text, share_text
from onerec_trt.tools.tables import gates_table, plans_table, recipes_table, stage_line, stage_warnings
from onerec_trt.tools.terminal import PIPE_WIDTH, results_console
from onerec_trt.validation.gates import gate
from rich.console import Console

from .report_runs import load

GATES = [
    gate("holds", "one", 0.5, "<=", 1.0),
    gate("falls [bold]", "two", 1.25, "<=", 1.1, "why [/red] it fell"),
    gate("no number", "two", float("inf"), ">=", 0.9),
]


def printed(table: Any, **options: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, **{"width": 160, **options}).print(table)
    return stream.getvalue()


def test_failed_gates_come_first_with_their_reason() -> None:
    text = printed(gates_table(GATES))
    assert "1 of 3 gates passed" in text
    assert text.index("falls [bold]") < text.index("no number") < text.index("holds")
    assert "why [/red] it fell" in text
    assert "≤ 1.1" in text
    assert "not finite" in text
    assert text.count("✗") == 2


def test_only_failed_gates() -> None:
    text = printed(gates_table(GATES, failed_only=True))
    assert "1 of 3 gates passed" in text
    assert "holds" not in text


def test_a_line_is_enough_when_no_gate_failed() -> None:
    assert printed(gates_table(GATES[:1], failed_only=True)) == "✓ 1 of 1 gates passed\n"
    assert "0 of 0 gates passed" in printed(gates_table([], failed_only=True))


LONG = "1b-fp8-static-h200"  # the longest name in configs/
LAYER = {
    "profile": 0,
    "name": "a",
    "kind": "gemm",
    "kernel": "sm90_e4m3",
    "inputs": [],
    "outputs": [],
    "in_fp8": True,
    "nodes": ["a/MatMul"],
}


def test_every_table_is_whole_in_80_columns(make_run: Callable[..., Path]) -> None:
    names = ("weights in the file", "packed model beside ModelOpt", "top-1 outside the tie band", "hits within the paired interval of FP32")
    gates = [gate(name, LONG, 1.23456e-7, "<=", 1e-6, "why " * 60) for name in names]
    plan = f"{LONG}/plans-tensorrt/sm90-b1-32-s2-3072-scoring.plan"
    built = {"path": plan, "target": "tensorrt sm 9.0", "validated": False}
    facts = {"kind": "plan", "compute_capability": "9.0", "sha256": "0123456789abcdef" * 4, "layers": [LAYER]}
    shown = {
        gates_table: (gates_table(gates), (*" ".join(names).split(), LONG, "1.235e-07", "≤ 1e-06")),
        recipes_table: (recipes_table([load(make_run(LONG)).validation]), (LONG, "overlap@10", "0.0202", "1.012", "4/4")),
        plans_table: (plans_table([built]), (plan, "tensorrt sm 9.0, not seen on a GPU")),
        inspection.table: (inspection.table(facts), ("compute_capability", "sm90_e4m3")),
    }
    for table, (rendered, wanted) in shown.items():
        text = printed(rendered, width=80)
        assert "…" not in text, table
        assert all(word in text for word in wanted), text
        assert all(len(line) <= 80 for line in text.splitlines()), table


def test_a_checksum_is_folded_not_cut() -> None:
    text = printed(inspection.table({"kind": "plan", "compute_capability": "9.0", "sha256": "0123456789abcdef" * 4}), width=60)
    assert "".join(re.findall(r"[0-9a-f]{16,}", text)) == "0123456789abcdef" * 4


def test_a_pipe_is_wide_whatever_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert results_console().width == PIPE_WIDTH
    monkeypatch.setenv("FORCE_COLOR", "1")  # which says that standard output is as good as a terminal
    assert results_console().width == 40


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[3" in printed(gates_table(GATES), force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in printed(gates_table(GATES), force_terminal=True).replace("\x1b[3m", "")  # italics are no color


def test_recipes_side_by_side(make_run: Callable[..., Path]) -> None:
    good, bad = (load(make_run(name, **options)).validation for name, options in (("good", {}), ("bad", {"gates": GATES})))
    lines = printed(recipes_table([good, bad])).splitlines()
    (shown,) = [line for line in lines if "good" in line]
    assert all(value in shown for value in ("✓", "43.8 %", "44.2 %", "93.8 %", "0.0202", "1.012", "4/4"))
    (shown,) = [line for line in lines if "bad" in line]
    assert "✗" in shown
    assert "1/3" in shown


def test_plans_say_whether_a_gpu_has_seen_them() -> None:
    text = printed(
        plans_table(
            [{"path": "a/sm89.plan", "target": "rtx 8.9", "validated": False}, {"path": "b", "target": "rtx 12.0", "validated": True}]
        )
    )
    assert re.search(r"a/sm89.plan +no *\nrtx 8.9, not seen on a GPU", text)
    assert re.search(r"b +yes *\nrtx 12.0 *\n", text)


def test_stage_lines() -> None:
    assert stage_line("fp8-row", "export", True, 75.2).plain == "✓ fp8-row       export       1 min 15 s"
    assert stage_line("fp8-row", "export", False, 0.01).plain == "✓ fp8-row       export       up to date"
    longest = stage_line("fp8-row-block", "validate-tensorrt", True, 75.2).plain
    assert longest == "✓ fp8-row-block validate-tensorrt   1 min 15 s"
    longer = stage_line("production-fp8-row", "validate-tensorrt", True, 75.2).plain
    assert longer == "✓ production-fp8-row validate-tensorrt   1 min 15 s"


def test_warnings_of_a_stage_stand_below_it_and_many_are_counted() -> None:
    def shown(**facts: Any) -> list[str]:
        made = Record(stage="build", read={}, sources="", options={}, tools={}, wrote={}, facts=facts)
        return [line.plain for line in stage_warnings(made)]

    assert shown(passed=True, figures={"a": 1}) == []
    assert shown(warnings=["blocks.0: small [x]"]) == ["! blocks.0: small [x]"]
    assert shown(**{"a.plan": {"plan": "a.plan", "builder_warnings": ["slow"]}}) == ["! a.plan: slow"]
    many = shown(warnings=[f"w{number}" for number in range(20)])
    assert many[-1] == "! 8 more warnings are in the record and in the report"
    assert len(many) == 13


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(1023), "1023 B"),
        (bytes_text(17084140), "16.3 MiB"),
        (bytes_text(5 << 40), "5.0 TiB"),
        (number_text(0.0123456), "0.01235"),
        (number_text(None), "not finite"),
        (number_text(float("nan"), ".3f"), "not finite"),
        (share_text(0.125), "12.5 %"),
        (seconds_text(9.96), "10.0 s"),
        (seconds_text(119.9), "2 min 0 s"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected
