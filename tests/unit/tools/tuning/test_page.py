"""The page of the operators' benchmark shows the committed measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.tools.tuning.page import write_page

DOCS = Path(__file__).parents[4] / "docs"


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
    assert "1485 of 1980 MHz, 100 % at the power limit</td>" in html
    data = json.loads(re.search(r'id="plots-data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert [len(trace["x"]) for trace in data["operators"]["data"]] == [len(measured["results"])] * 2


def test_a_kernel_without_a_library_beside_it_has_a_row(measured: dict[str, Any], tmp_path: Path) -> None:
    lonely = {**measured["results"][0], "library": "torch; failed: <no such thing>", "library_microseconds": None}
    first = {**measured["environment"], "clocks": measured["environment"]["clocks"][:1]}
    write_page({"environment": first, "results": [lonely]}, tmp_path / "operators.html")
    assert "failed: &lt;no such thing&gt;" in (tmp_path / "operators.html").read_text()
