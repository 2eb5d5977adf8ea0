"""What README and docs/performance.md say of the dense model with kernels is what the committed measurement says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
CANDIDATES = ("torch-cuda-graph bf16", "torch-compile bf16", "fp16", "fp8-static", "fp8-row")
GRAPH, COMPILED, FP16, STATIC, ROW = CANDIDATES


def name_of(entry: dict[str, Any]) -> str:
    recipe = str(entry["recipe"])
    return recipe.removesuffix("+kernels") if entry.get("engine", "tensorrt") == "tensorrt" else f"{entry['engine']} {recipe}"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / "docs" / "measurements" / "h200-dense-kernels.json").read_text())
    return read


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "performance.md").read_text().split("\n## 1B, ", 1)[1].split("\n### Plans without", 1)[0]


def of_batch(entries: list[dict[str, Any]], batch: int) -> dict[str, dict[str, Any]]:
    return {name_of(each): each for each in entries if each["batch"] == batch}


def medians(report: dict[str, Any], batch: int) -> dict[str, float]:
    return {name: each["latency_ms"]["median"] for name, each in of_batch(report["results"], batch).items()}


def alone(report: dict[str, Any], batch: int) -> dict[str, dict[str, Any]]:
    return of_batch(report["environment"]["alone"], batch)


def products_of(report: dict[str, Any], batch: int) -> dict[str, float]:
    return {name: each["parts"]["matrix products"] for name, each in of_batch(report["environment"]["layer_times"], batch).items()}


def test_the_second_table_of_the_readme(report: dict[str, Any]) -> None:
    words = dict(zip(CANDIDATES, ("PyTorch, BF16, CUDA graph", "torch.compile, BF16, CUDA graph", *CANDIDATES[2:]), strict=True))
    text = (ROOT / "README.md").read_text().split("\n| engine | ms | requests/s |\n", 1)[1].split("\n\n", 1)[0].replace("*", "")
    results = of_batch(report["results"], 32)
    assert text.splitlines()[1:] == [
        f"| {words[name] if ' ' in name else f'TensorRT with our kernels, `{name}`'} | {results[name]['latency_ms']['median']:.1f} | "
        f"{results[name]['requests_per_s']:.0f} |"
        for name in CANDIDATES
    ]


def test_how_much_faster_the_plans_are(report: dict[str, Any], page: str) -> None:
    took, one = medians(report, 32), medians(report, 1)
    for words, other in (("PyTorch with a CUDA graph", GRAPH), ("torch.compile with a CUDA graph", COMPILED), ("FP16 with kernels", FP16)):
        figures = [f"{took[other] / took[plan]:.2f}" for plan in (STATIC, ROW, FP16)]
        assert f"\n| {words} | {' | '.join(figures[:2])} | {figures[2] + ' ' if other != FP16 else ''}|\n" in page
    assert f"take {one[STATIC]:.2f} ms (fp8-static) and {one[ROW]:.2f} (fp8-row)**" in page
    by_graph, by_compiled = ([one[other] / one[plan] for plan in (STATIC, ROW)] for other in (GRAPH, COMPILED))
    assert f"{by_graph[0]:.2f} and {by_graph[1]:.2f} x as fast as PyTorch with a CUDA graph, " in page
    assert f"{by_compiled[0]:.2f} and {by_compiled[1]:.2f} x as fast as torch.compile." in page
    assert f"**FP16 is slower than torch.compile**, {one[FP16]:.1f} beside {one[COMPILED]:.1f} ms." in page


def test_each_one_alone(report: dict[str, Any], page: str) -> None:
    every, one = alone(report, 32), alone(report, 1)
    times = " | ".join(f"{every[name]['latency_ms']['median']:.1f}" for name in CANDIDATES)
    clocks = " | ".join(f"{every[name]['mhz']:.0f}, {every[name]['watts']:.0f}" for name in CANDIDATES)
    assert f"\n| ms | {times} |\n| MHz, W | {clocks} |\n" in page
    assert all(each["at_power_limit"] == 1 for each in every.values())
    assert all((each["at_power_limit"], each["mhz"]) == (0, 1980) for each in one.values())
    static, row = (f"{one[name]['latency_ms']['median']:.2f}" for name in (STATIC, ROW))
    assert f"alone {static} and {row}." in page
    took, by_itself = medians(report, 32), {name: each["latency_ms"]["median"] for name, each in every.items()}
    in_turns, each_alone = (100 * (times[ROW] / times[STATIC] - 1) for times in (took, by_itself))
    assert f"**fp8-static is {in_turns:.1f} % faster than fp8-row** in turns, {each_alone:.1f} % alone." in page
    in_turns, each_alone = (100 * (times[COMPILED] / times[FP16] - 1) for times in (took, by_itself))
    assert f"**FP16 is {in_turns:.0f} % faster than torch.compile** in turns, {each_alone:.0f} % alone." in page
    samples = of_batch(report["results"], 32)
    firsts = {name: ", ".join(f"{each:.1f}" for each in samples[name]["samples_ms"][:4]).rpartition(", ") for name in (STATIC, ROW)}
    said = {name: f"{before} and {last}" for name, (before, _, last) in firsts.items()}
    assert f"are {said[STATIC]} ms in fp8-static, {said[ROW]} in fp8-row." in page


def test_the_layers(report: dict[str, Any], page: str) -> None:
    wide, one = (of_batch(report["environment"]["layer_times"], batch) for batch in (32, 1))
    products, few = (products_of(report, batch) for batch in (32, 1))
    places = {name: {place["places"]: place["milliseconds"] for place in each["places"]} for name, each in wide.items()}
    assert "blocks.*.cross.quantize" not in places[STATIC]
    quantized, (static, row) = places[ROW]["blocks.*.cross.quantize"], (wide[name]["milliseconds"] for name in (STATIC, ROW))
    assert f"layers take {static:.1f} ms and those of fp8-row {row:.1f}, of which {quantized:.1f} quantize results" in page
    assert "blocks.*.ffn.activation" not in places[STATIC]
    assert f"of attention over the context and {places[ROW]['blocks.*.ffn.activation']:.1f} are SwiGLU." in page
    fp16 = f"{products[FP16]:.1f} of {wide[FP16]['milliseconds']:.1f}"
    assert f"are {products[STATIC]:.1f} ms of the layers in fp8-static, {products[ROW]:.1f} in fp8-row, {fp16} in FP16." in page
    (s, s_share), (r, r_share), (h, h_share) = ((one[name]["milliseconds"], one[name]["of_latency"]) for name in (STATIC, ROW, FP16))
    assert f"take {s:.1f} ms in fp8-static and {r:.1f} in fp8-row, {s_share:.2f} and {r_share:.2f} times the latency; " in page
    assert f"matrix products are {few[STATIC]:.1f} and {few[ROW]:.1f} of them." in page
    assert f"In FP16 they take {h:.1f} ms, {h_share:.2f} times the latency." in page


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("h200-dense-kernels.json", "1B with two profiles {} in fp16, {} in fp8-static and {} in fp8-row"),
        (
            "h200-moe.json",
            "4B-A0.5B with three profiles {} in `fp16` and {} in `fp8-row-block`, with the one profile of beams 128-256-512 {} and {}.",
        ),
    ],
)
def test_the_sizes_of_plans(file: str, words: str) -> None:
    plans = json.loads((ROOT / "docs" / "measurements" / file).read_text())["environment"]["plans"]
    text = (ROOT / "docs" / "performance.md").read_text().split("\n## Plan size\n", 1)[1].split("\n## ", 1)[0]
    assert words.format(*(f"{plan['weight_ratio']:.3f}" for plan in plans)) in text
    assert [len(plan["profiles"]) for plan in plans] == ([2, 2, 2] if file.startswith("h200-dense") else [3, 3, 1, 1])
