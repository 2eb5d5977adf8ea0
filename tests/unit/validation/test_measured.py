"""The pages say of the committed validations of the published model what these say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
H100, H200 = "h100-4b-a0.5b-validation.json", "h200-4b-a0.5b-validation.json"
ATTENTION = "h200-4b-a0.5b-paper-attention-validation.json"
FP16, ROW = "h200-4b-a0.5b-fp16-validation.json", "h200-4b-a0.5b-fp8-row-validation.json"
LATER = "`configs/{recipe}.yaml` took SECONDS s and passed all {gates}: {engine} nat beside {quantized}, {overlap} %"


def validation(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / "docs" / "measurements" / name).read_text())
    return read


@pytest.mark.parametrize(
    ("file", "recipe", "requests", "said"),
    [
        (H100, "4b-a0.5b-fp8-row-block", 512, "All {gates} gates passed, of both plans at batches of 2, 8 and 32"),
        (H200, "4b-a0.5b-fp8-row-block", 128, "all {gates} passed, too: {engine} nat beside {quantized}, {overlap} %"),
        (
            ATTENTION,
            "4b-a0.5b-fp8-paper-attention",
            128,
            "So did all {gates} of `configs/{recipe}.yaml`: {engine} nat beside {quantized}, {overlap} %",
        ),
        (FP16, "4b-a0.5b-fp16", 128, LATER.replace("SECONDS", "429")),
        (ROW, "4b-a0.5b-fp8-row", 128, LATER.replace("SECONDS", "510")),
    ],
)
def test_the_page_of_tensorrt(file: str, recipe: str, requests: int, said: str) -> None:
    measured = validation(file)
    assert (measured["recipe"], measured["requests"], measured["engine"]) == (recipe, requests, "tensorrt")
    assert all(gate["passed"] for gate in measured["gates"])
    figures = {
        "gates": len(measured["gates"]),
        "recipe": recipe,
        "engine": f"{measured['scoring']['engine']:.4f}",
        "quantized": f"{measured['scoring']['quantized']:.4f}",
        "overlap": f"{100 * measured['beams']['overlap_W']:.1f}",
    }
    page = (ROOT / "docs" / "tensorrt.md").read_text()
    assert f"{said.format(**figures)} ([{file}](measurements/{file}))" in page
    assert (ROOT / "configs" / f"{recipe}.yaml").exists()


def test_one_gate_more_than_on_the_h100() -> None:
    before, now = ({gate["name"] for gate in validation(name)["gates"]} for name in (H100, H200))
    assert (now - before, before - now) == ({"operator ContextFeatures"}, set())


def test_other_pages_have_the_number_of_gates() -> None:
    gates = {len(validation(name)["gates"]) for name in (H200, ATTENTION)}
    assert gates == {75}
    assert "all 75 gates of commit `1bdf409` passed on an H200" in (ROOT / "README.md").read_text()
    performance = (ROOT / "docs" / "performance.md").read_text()
    later = [len(validation(name)["gates"]) for name in (FP16, ROW)]
    assert f"passed all their gates on an H200, {later[0]} and {later[1]}, with 128 requests ([{FP16}]" in performance
    assert f"plan passed all 75 gates on an H200 ([{H200}](measurements/{H200}), 128 requests), and so did" in performance
    assert f"that of `fp8-paper-attention` ([{ATTENTION}](measurements/{ATTENTION}), 128 requests)." in performance
