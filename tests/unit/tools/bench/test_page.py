"""The page of a benchmark's result, and the figures in docs/performance.md: both say what the committed measurement says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.tools.bench.page import write_page
from onerec_trt.tools.bench.parts import ELSEWHERE, EXPERTS, PARTS, PRODUCTS, ROUTER, milliseconds_by_part, part_of
from onerec_trt.tools.bench.table import shape_text

DOCS = Path(__file__).parents[4] / "docs"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((DOCS / "measurements" / "h200-dense.json").read_text())
    return report


def table_after(heading: str, page: Path = DOCS / "performance.md") -> dict[str, list[str]]:
    """The rows of the first table below a heading of a page, by their first cell, without bold."""
    text = page.read_text().split(heading, 1)[1]
    rows = [line.replace("**", "").strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    end = next((n for n, row in enumerate(rows) if n > 2 and set(row[0]) <= {"-"}), len(rows) + 1) - 1  # where the next table begins
    return {" ".join(row[:2]) if rows[0][0] == "engine" else row[0]: row for row in rows[:end]}


def test_the_page_says_what_was_measured(measured: dict[str, Any], tmp_path: Path) -> None:
    write_page(measured, tmp_path / "bench.html")
    html = (tmp_path / "bench.html").read_text()
    for result in measured["results"]:
        assert f">{result['latency_ms']['median']:.1f}</td>" in html
        assert result["recipe"] in html
    data = json.loads(re.search(r'id="plots-data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert set(data) == {"latency-0", "parts"}
    assert len(data["latency-0"]["data"][0]["x"]) == len(measured["results"])
    assert [trace["name"] for trace in data["parts"]["data"]] == [part for part in PARTS if part not in (EXPERTS, ROUTER)]
    assert "This run counts" in html
    assert "clock at 1B, 32 x 512 x 512: 1515 of 1980 MHz, 100 % at the power limit" in html
    assert not re.search(r'(src|href)="(?!#)', html.split("<script", 1)[0]), "nothing is loaded from anywhere"


def test_a_run_that_does_not_count_says_so_and_takes_nothing_for_markup(measured: dict[str, Any], tmp_path: Path) -> None:
    bad = copy.deepcopy(measured)
    bad["environment"]["invalid_because"] = ["the <baseline> was slow"]
    bad["environment"]["layer_times"] = []
    write_page(bad, tmp_path / "bench.html")
    html = (tmp_path / "bench.html").read_text()
    assert "This run does not count" in html
    assert "the &lt;baseline&gt; was slow" in html


def test_the_page_names_the_card_of_the_limits_where_it_is_another(measured: dict[str, Any], tmp_path: Path) -> None:
    write_page(measured, tmp_path / "own.html")
    assert "limits: those of" not in (tmp_path / "own.html").read_text()
    other = copy.deepcopy(measured)
    other["environment"]["gpu"] = "NVIDIA L40S"
    write_page(other, tmp_path / "other.html")
    assert "limits: those of NVIDIA H200 SXM, as the peak rates of NVIDIA L40S are not known" in (tmp_path / "other.html").read_text()


@pytest.mark.parametrize(
    ("places", "part"),
    [
        ("blocks.*.ffn.gate_up", PRODUCTS),
        ("blocks.*.cross.o, blocks.*.self.o, blocks.*.self.norm", "norms and residuals"),
        ("blocks.*.ffn.gate_up, blocks.*.ffn.activation", "SwiGLU"),
        ("blocks.*.self.qkv, blocks.*.self.attention, blocks.*.self.quantize", "self-attention"),
        ("blocks.*.cross.q, blocks.*.cross.attention", "attention to the context"),
        ("context.key_norm_0, node_pad_2", "attention to the context"),
        ("beam, blocks.*.self.attention, node_embedding_2", "beam steps, heads, embedding"),
        ("blocks.*.ffn.experts", EXPERTS),
        ("blocks.*.ffn.experts, blocks.*.cross.norm", EXPERTS),
        ("blocks.*.ffn.route", ROUTER),
        ("elsewhere", ELSEWHERE),
        ("node_add_1", ELSEWHERE),
    ],
)
def test_fused_layers_count_once(places: str, part: str) -> None:
    assert part_of(places) == part


def test_no_time_is_lost(measured: dict[str, Any]) -> None:
    for times in measured["environment"]["layer_times"]:
        assert sum(milliseconds_by_part(times).values()) == pytest.approx(times["milliseconds"], rel=1e-3)


@pytest.mark.parametrize(
    ("file", "batch", "heading"),
    [
        ("h200-dense.json", 32, "## 1B, batch 32, beam 512, context 512"),
        ("h200-dense-kernels.json", 32, "### Plans with kernels, in random order"),
        ("h200-dense-kernels.json", 1, "### One request"),
        ("h100-moe-fp16.json", 32, "### In FP8 and FP16"),
    ],
)
def test_the_documentation_shows_these_latencies(file: str, batch: int, heading: str) -> None:
    names = {
        "torch-eager": "PyTorch eager",
        "torch-cuda-graph": "PyTorch, CUDA graph",
        "torch-compile": "torch.compile, CUDA graph",
        "tensorrt": "TensorRT",
    }
    shown = table_after(heading)
    results = [each for each in json.loads((DOCS / "measurements" / file).read_text())["results"] if each["batch"] == batch]
    assert len(results) == len(shown) - 2, "a row for each candidate, below the table's head"
    for result in results:
        engine, recipe = names[result["engine"]], result["recipe"].removesuffix("+kernels")
        row = shown[f"{engine}{' with kernels' if result['recipe'] != recipe else ''} {recipe}"]
        latency = result["latency_ms"]
        assert row[2:4] == [f"{latency['median']:.1f}", f"{latency['p10']:.1f} to {latency['p90']:.1f}"]
        assert row[4:] == [f"{result['requests_per_s']:.0f}", f"{latency['median'] / result['limit_ms']:.2f}"]


def test_the_documentation_shows_the_published_model() -> None:
    shown = table_after("## 4B-A0.5B on an H100")
    results = json.loads((DOCS / "measurements" / "h100-moe.json").read_text())["results"]
    by_recipe = {(shape_text(result), result["recipe"], result["engine"]): result for result in results}
    for shape in {key[0] for key in by_recipe}:
        baseline, plan = by_recipe[shape, "bf16", "torch-cuda-graph"], by_recipe[shape, "fp8-row-block+kernels", "tensorrt"]
        latency = plan["latency_ms"]
        assert shown[shape][1:] == [
            f"{baseline['latency_ms']['median']:.1f}",
            f"{latency['median']:.1f}",
            f"{latency['p10']:.1f} to {latency['p90']:.1f}",
            f"{plan['requests_per_s']:.0f}",
            f"{latency['median'] / plan['limit_ms']:.2f}",
        ]


def test_the_first_table_of_the_readme_shows_the_published_model() -> None:
    shown = table_after("# onerec-trt", DOCS.parent / "README.md")
    results = json.loads((DOCS / "measurements" / "h100-moe.json").read_text())["results"]
    for plan in (result for result in results if result["engine"] == "tensorrt"):
        (baseline,) = (each for each in results if each["engine"] == "torch-cuda-graph" and shape_text(each) == shape_text(plan))
        assert shown[shape_text(plan)][1:] == [
            f"{baseline['latency_ms']['median']:.1f}",
            f"{plan['latency_ms']['median']:.1f}",
            f"{plan['requests_per_s']:.0f}",
            f"{plan['limit_ms']:.1f}",
        ]


def test_the_parts_of_the_published_model_are_the_whole() -> None:
    report = json.loads((DOCS / "measurements" / "h100-moe.json").read_text())
    latencies = {shape_text(each): each["latency_ms"]["median"] for each in report["results"] if each["engine"] == "tensorrt"}
    head, _line, *rows = table_after("### Where its time goes").values()
    columns = dict(zip(head[1:], zip(*(map(float, row[1:]) for row in rows), strict=True), strict=True))
    assert set(columns) == {shape_text(times) for times in report["environment"]["layer_times"]}
    for times in report["environment"]["layer_times"]:
        *parts, layers, batch = columns[shape_text(times)]
        by_part = milliseconds_by_part(times)
        assert parts[:2] == [round(by_part[part], 1) for part in (EXPERTS, ROUTER)]
        assert sum(parts) == pytest.approx(times["milliseconds"], abs=0.05 * len(parts)), "each part is rounded"
        assert [layers, batch] == [round(times["milliseconds"], 1), round(latencies[shape_text(times)], 1)]
        assert times["batch"] < 32 or sum(parts) == pytest.approx(batch, rel=0.05)


def test_the_documentation_shows_the_published_model_on_an_h200() -> None:
    shown = table_after("## 4B-A0.5B on an H200")
    cases = json.loads((DOCS / "measurements" / "h200-items.json").read_text())["plans"]["cases"]
    assert [shown[shape_text(case)][1:] for case in cases] == [[f"{case['milliseconds']['open']:.2f}"] for case in cases]


def test_the_documentation_shows_these_parts(measured: dict[str, Any]) -> None:
    shown = table_after("## Where the time goes")
    recipes = shown["part"][1:]
    by_recipe = {times["recipe"]: milliseconds_by_part(times) for times in measured["environment"]["layer_times"]}
    assert set(recipes) == set(by_recipe)
    for part in (part for part in PARTS if any(times[part] for times in by_recipe.values())):
        assert shown[part][1:] == [f"{by_recipe[recipe][part]:.1f}" for recipe in recipes]
