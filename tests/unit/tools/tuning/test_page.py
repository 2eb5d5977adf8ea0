"""The page of the operators' benchmark shows the committed measurement, and the pages of docs/kernels say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.tools.tuning.page import write_page

DOCS = Path(__file__).parents[4] / "docs"
PAGES = {
    "RmsNorm": "rms-norm",
    "RmsNormQuantRow": "rms-norm-quant",
    "SwiGluQuantRow": "swiglu",
    "LinearAdd": "linear",
    "Fp8LinearAdd": "fp8-linear",
    "ContextAttention": "context-attention",
    "BeamSelfAttention2": "beam-self-attention",
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((DOCS / "measurements" / "h200-operators.json").read_text())
    return report


def test_the_page_says_what_was_measured(measured: dict[str, Any], tmp_path: Path) -> None:
    write_page(measured, tmp_path / "operators.html")
    html = (tmp_path / "operators.html").read_text()
    for result in measured["results"]:
        assert f">{result['microseconds']:.1f}</td>" in html
        assert f">{result['shape']}</td>" in html
    assert "1440 of 1980 MHz, 100 % at the power limit</td>" in html
    data = json.loads(re.search(r'id="plots-data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert [len(trace["x"]) for trace in data["operators"]["data"]] == [len(measured["results"])] * 2


def test_a_kernel_without_a_library_beside_it_has_a_row(measured: dict[str, Any], tmp_path: Path) -> None:
    lonely = {**measured["results"][0], "library": "torch; failed: <no such thing>", "library_microseconds": None}
    first = {**measured["environment"], "clocks": measured["environment"]["clocks"][:1]}
    write_page({"environment": first, "results": [lonely]}, tmp_path / "operators.html")
    assert "failed: &lt;no such thing&gt;" in (tmp_path / "operators.html").read_text()


def test_every_operator_s_page_has_its_measured_times(measured: dict[str, Any]) -> None:
    assert {result["operator"] for result in measured["results"]} == set(PAGES)
    for result in measured["results"]:
        text = (DOCS / "kernels" / f"{PAGES[result['operator']]}.md").read_text()
        assert f"{result['microseconds']:.1f} us" in text
        assert f"{result['library_microseconds']:.1f} us" in text


def test_the_table_of_all_operators_has_their_rates(measured: dict[str, Any]) -> None:
    table = (DOCS / "performance.md").read_text().split("## Operators", 1)[1].split("###", 1)[0]
    shown = [float(figure) for figure in re.findall(r"\d+(?:\.\d+)?", table)]
    for result in measured["results"]:
        library = result["microseconds"] / result["library_microseconds"]
        if result["operator"] == "BeamSelfAttention2":
            expected = [result["microseconds"], result["library_microseconds"]]
        else:
            rate = result["tflops"] or result["gbytes_per_s"] / 1e3
            expected = [rate, rate * library]
        for figure in expected:
            assert any(each == pytest.approx(figure, rel=6e-3, abs=0) for each in shown), (result["operator"], result["shape"], figure)
