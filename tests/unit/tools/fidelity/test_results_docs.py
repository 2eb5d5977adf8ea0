"""The tables of docs/fidelity.md and of the README say what the files of measurements say."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from onerec_trt.core.artifacts import read_json
from onerec_trt.fidelity.metrics import TOP1
from onerec_trt.fidelity.mixed import FP8_SPEEDUP
from onerec_trt.fidelity.references import REFERENCES
from onerec_trt.fidelity.stress_measurement import SCALES
from onerec_trt.fidelity.table import FidelityTable, bars
from onerec_trt.tools.fidelity.results_page import read_results

DOCS = Path(__file__).parents[4] / "docs"
MEASUREMENTS = DOCS / "measurements"


def tables() -> dict[str, FidelityTable | None]:
    """By the first cell of the table that shows it."""
    results = {each.training["reference"]: each for each in read_results(MEASUREMENTS)}
    everything = FidelityTable.model_validate(read_json(MEASUREMENTS / "h200-fidelity-0.1B-moe-plans.json"))
    demo = FidelityTable.model_validate(read_json(MEASUREMENTS / "fidelity-attention.json"))
    return {
        "0.1B, plans, 1024 requests": results["0.1B"].engine_table,
        "0.1B, packed, 2048 requests": results["0.1B"].table,
        "0.1B-moe, plans, 2048 requests": results["0.1B-moe"].engine_table,
        "0.1B-moe, packed, 2048 requests": results["0.1B-moe"].table,
        "0.1B-moe, everything in FP8, plans, 1024 requests": everything,
        "demo, 1600 requests": demo,
    }


def rows_of(first: str) -> list[list[str]]:
    """The table of the page whose first cell this is, its heading included."""
    lines = (DOCS / "fidelity.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found[:1] + found[2:]


@pytest.mark.parametrize("first", tables())
def test_a_table_of_results_is_that_of_its_file(first: str) -> None:
    table = tables()[first]
    assert table is not None
    assert f"{table.requests} requests" in first
    heading, *body = rows_of(first)
    rows = {row.system: row for row in table.rows}
    judged = bars(table)
    metrics = ["hit@10", f"hit@{table.width}", f"overlap@{table.width}", TOP1, "score error, nat"]
    assert [row[0] for row in body] == [*metrics, "bars reached"]
    assert set(heading[2:]) == {row.system for row in table.rows if row.beside == "FP32"}
    for metric, fp32, *cells in body[:-1]:
        measured = [rows[system].cell(metric) for system in heading[2:]]
        assert cells == [f"{cell.value:.4f}".replace("1.0000", "1") for cell in measured]
        assert fp32 == ("" if measured[0].fp32 is None else f"{measured[0].fp32:.4f}")
    for system, cell in zip(heading[2:], body[-1][2:], strict=True):
        own = [gate.passed for gate in judged if gate.recipe == system]
        assert cell == (f"{sum(own)} of {len(own)}" if own else "")


def test_the_table_of_the_readme_is_one_of_the_page() -> None:
    rows = [line for line in (DOCS / "fidelity.md").read_text().splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(rows) if line.startswith("| 0.1B-moe, plans, 2048 requests |"))
    assert "\n".join(rows[start : start + 8]) + "\n\n" in (DOCS.parent / "README.md").read_text()


def test_errors_with_the_first_block_kept_are_those_of_their_file() -> None:
    table = FidelityTable.model_validate(read_json(MEASUREMENTS / "fidelity-kept.json"))
    rows = {row.system: row.cell("score error, nat").value for row in table.rows}
    heading, *body = rows_of("score error, nat | fp8-row-block | fp8-paper | fp8-paper-attention")
    for kept, *cells in body:
        ending = "" if kept == "everything in FP8" else f", {kept}"
        assert cells == [f"{rows[precision + ending]:.4f}" for precision in heading[1:]]


def test_the_layers_that_are_kept_are_those_of_the_reference() -> None:
    page = (DOCS / "fidelity.md").read_text()
    assert all(f"`{pattern}`" in page for pattern in REFERENCES["0.1B-moe"].keep_fp16)


def test_shares_of_layers_are_those_of_their_file() -> None:
    """Of the products and of the squared errors, by what the page takes together."""
    measured = next(each.layers for each in read_results(MEASUREMENTS) if each.training["reference"] == "0.1B-moe")
    assert measured is not None
    layers = next(found.layers for found in measured.sensitivity if found.precision == "fp8-row-block")
    parts = [
        [unit for unit in layers if fnmatchcase(unit.unit, "blocks.0.[cs]*")],
        [unit for unit in layers if fnmatchcase(unit.unit, "blocks.[1-5].[cs]*")],
        [unit for unit in layers if fnmatchcase(unit.unit, "blocks.0.ffn.*")],
    ]
    parts.append([unit for unit in layers if not any(unit in part for part in parts)])
    whole = sum(unit.error**2 for unit in layers)
    _, *body = rows_of("quantized alone in `fp8-row-block`, 0.1B-moe")
    shares = [(sum(unit.share for unit in part), sum(unit.error**2 for unit in part) / whole) for part in parts]
    assert [row[1:] for row in body] == [[f"{100 * products:.1f} %", f"{100 * errors:.0f} %"] for products, errors in shares]


def test_errors_with_kept_layers_are_those_of_their_file() -> None:
    """With those that the recipes keep, in the packed table, and with those that the search for a mixed recipe found."""
    measured = next(each for each in read_results(MEASUREMENTS) if each.training["reference"] == "0.1B-moe")
    assert measured.layers is not None
    assert measured.table is not None
    packed = {row.system: row.cell("score error, nat").value for row in measured.table.rows}
    mixed = {found.precision: found for found in measured.layers.mixed}
    layers = {found.precision: found.layers for found in measured.layers.sensitivity}
    _, *body = rows_of("0.1B-moe, score error, nat")
    assert [row[0] for row in body] == list(layers)
    for precision, *cells in body:
        found, units = mixed[precision], layers[precision]
        kept = [unit.share for unit in units if any(fnmatchcase(unit.unit, pattern) for pattern in measured.keep_fp16)]
        everything, recipe, searched = (f"{error:.4f}" for error in (found.error_without, packed[precision], found.error))
        list_of_search = [searched, f"{len(found.kept)} of {len(units)}", f"x {found.slower:.2f}"]
        assert cells == [everything, recipe, f"x {1 + sum(kept) * (FP8_SPEEDUP - 1):.2f}", *list_of_search]


def test_errors_with_an_outlier_are_those_of_their_file() -> None:
    """One channel of a thousand times its size, before and after."""
    results = {each.training["reference"]: each.stress for each in read_results(MEASUREMENTS)}
    _, *body = rows_of("| one static scale | a scale per token | blocks")
    assert [row[0] for row in body] == list(results)
    for name, *cells in body:
        stress = results[name]
        assert stress is not None
        rows = {(row.outlier, row.factor): row.errors for row in stress.rows}
        clean, planted = rows["none", 1], rows["channel", 1024]
        assert cells == [f"{clean[scale]:.4f}, {planted[scale]:.4f}" for scale in SCALES]
