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
    text = page.read_text().split(f"\n{heading}\n", 1)[1]
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
        ("h200-dense.json", 32, "### Plans without kernels beside those with"),
        ("h200-dense-kernels.json", 32, "## 1B, batch 32, beam 512, context 512"),
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


def by_shape(file: str) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """Results of a measurement by shape, then by engine and recipe."""
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for result in json.loads((DOCS / "measurements" / file).read_text())["results"]:
        found.setdefault(shape_text(result), {})[result["engine"], result["recipe"]] = result
    return found


GRAPH, COMPILED = ("torch-cuda-graph", "bf16"), ("torch-compile", "bf16")
FP16, FP8 = ("tensorrt", "fp16+kernels"), ("tensorrt", "fp8-row-block+kernels")


def medians(of_shape: dict[tuple[str, str], dict[str, Any]], *candidates: tuple[str, str]) -> list[str]:
    return [f"{of_shape[each]['latency_ms']['median']:.1f}" for each in candidates]


@pytest.mark.parametrize(
    ("card", "candidates"), [("h100", (GRAPH, FP8)), ("h200", (GRAPH, COMPILED, FP16, FP8))], ids=lambda value: str(value)[:4]
)
def test_the_documentation_shows_the_published_model(card: str, candidates: tuple[tuple[str, str], ...]) -> None:
    shown = table_after(f"## 4B-A0.5B on an {card.upper()}")
    results = by_shape(f"{card}-moe.json")
    assert set(shown) == {"batch x beam x context", "---", *results}
    for shape, of_shape in results.items():
        plan = of_shape[FP8]
        latency = plan["latency_ms"]
        assert shown[shape][1:] == [
            *medians(of_shape, *candidates),
            f"{latency['p10']:.1f} to {latency['p90']:.1f}",
            f"{plan['requests_per_s']:.0f}",
            f"{latency['median'] / plan['limit_ms']:.2f}",
        ]


def test_the_documentation_shows_how_much_faster_the_published_model_is() -> None:
    page = (DOCS / "performance.md").read_text()
    shown = [line.strip("| ").split(" | ") for line in page.split("| how many times as fast", 1)[1].splitlines()[:5]]
    results = by_shape("h200-moe.json")
    assert shown[0][1:] == list(results)
    for row, other in zip(shown[2:], (GRAPH, COMPILED, FP16), strict=True):
        assert row[1:] == [f"{each[other]['latency_ms']['median'] / each[FP8]['latency_ms']['median']:.2f}" for each in results.values()]


def alone() -> dict[tuple[str, str, str], dict[str, Any]]:
    """What each candidate of the published model took back to back on an H200, by shape, engine and recipe."""
    measured = json.loads((DOCS / "measurements" / "h200-moe.json").read_text())["environment"]["alone"]
    return {(shape_text(each), each["engine"], each["recipe"]): each for each in measured}


def test_the_documentation_shows_each_candidate_alone() -> None:
    shown = table_after("### Each one alone")
    by_candidate = alone()
    assert len(by_candidate) == 4 * (len(shown) - 2)
    for shape in {key[0] for key in by_candidate}:
        cells = (by_candidate[shape, *candidate] for candidate in (GRAPH, COMPILED, FP16, FP8))
        assert shown[shape][1:] == [f"{each['latency_ms']['median']:.1f}; {each['mhz']:.0f} MHz, {each['watts']:.0f} W" for each in cells]


def test_the_documentation_compares_in_turns_with_alone() -> None:
    page, of_shape = (DOCS / "performance.md").read_text(), by_shape("h200-moe.json")["32 x 512 x 512"]
    by_candidate = {key[1:]: each for key, each in alone().items() if key[0] == "32 x 512 x 512"}
    below = {key: each["at_power_limit"] for key, each in alone().items() if each["batch"] == 32 and each["at_power_limit"] < 1}
    assert list(below) == [("32 x 128-256-512 x 512", *GRAPH)]
    assert f"with narrow beams, which is there {100 * below.popitem()[1]:.0f} % of the time. In turns" in page
    latency, (*before, last) = of_shape[FP8]["latency_ms"], (f"{each:.1f}" for each in of_shape[FP8]["samples_ms"][:4])
    plan = by_candidate[FP8]
    assert f"of its samples are {latency['p10']:.1f} to {latency['p90']:.1f} ms, the first four {', '.join(before)} and {last}. " in page
    assert f"Alone it takes {plan['latency_ms']['median']:.1f} ms, at {plan['mhz']:.0f} of 1980 MHz." in page
    in_turns, each_alone = (
        [times[other]["latency_ms"]["median"] / times[FP8]["latency_ms"]["median"] for other in (GRAPH, COMPILED, FP16)]
        for times in (of_shape, by_candidate)
    )
    assert (
        f"a higher clock**, {by_candidate[GRAPH]['mhz']:.0f} MHz at batch 32. Each alone, the FP8 plan is {each_alone[0]:.2f} x as" in page
    )
    assert f"{each_alone[1]:.2f} x as fast as torch.compile; in turns {in_turns[0]:.2f} and {in_turns[1]:.2f} x." in page
    assert f"a lower clock**, {by_candidate[FP16]['mhz']:.0f} MHz at batch 32." in page
    assert f"`fp8-row-block` is {in_turns[2]:.2f} x as fast there in turns, {each_alone[2]:.2f} x alone." in page
    one = (by_shape("h200-moe.json")["1 x 512 x 512"][FP8], alone()["1 x 512 x 512", *FP8])
    turn, single = (f"{each['latency_ms']['median']:.1f}" for each in one)
    assert f"takes {turn} ms in turns and {single} alone." in page


def test_the_first_table_of_the_readme_shows_the_published_model() -> None:
    shown = table_after("## How fast is it", DOCS.parent / "README.md")
    results = by_shape("h200-moe.json")
    assert set(shown) == {"batch x beam x context", "---", *results}
    for shape, of_shape in results.items():
        plan = of_shape[FP8]
        assert shown[shape][1:] == [*medians(of_shape, GRAPH, COMPILED, FP8), f"{plan['requests_per_s']:.0f}", f"{plan['limit_ms']:.1f}"]


@pytest.mark.parametrize("page", ["README.md", "docs/items.md"])
def test_pages_tell_the_published_model_in_turns_from_the_same_alone(page: str) -> None:
    (in_turns,) = medians(by_shape("h200-moe.json")["32 x 512 x 512"], FP8)
    by_itself = alone()["32 x 512 x 512", *FP8]["latency_ms"]["median"]
    text = (DOCS.parent / page).read_text()
    assert in_turns in text
    assert re.search(rf"(takes|and) {by_itself:.1f}( ms there| alone)", text)


def test_the_readme_says_how_much_faster_the_published_model_is() -> None:
    text, results = (DOCS.parent / "README.md").read_text(), by_shape("h200-moe.json")
    shapes = [results[f"{batch} x 512 x 512"] for batch in (32, 8, 1)]
    ranges = []
    for other in (GRAPH, COMPILED):
        low, *_, high = sorted(f"{each[other]['latency_ms']['median'] / each[FP8]['latency_ms']['median']:.1f}" for each in shapes)
        ranges.append(low if low == high else f"{low} to {high}")
    assert f"that is {ranges[0]} x as fast as PyTorch with a CUDA graph, and {ranges[1]} x as fast as torch.compile with one." in text
    (fp16,), ratio = medians(shapes[0], FP16), shapes[0][FP16]["latency_ms"]["median"] / shapes[0][FP8]["latency_ms"]["median"]
    assert f"A plan in FP16 takes {fp16} ms at batch 32, {ratio:.2f} x as long." in text
    assert f"ms there, PyTorch {alone()['32 x 512 x 512', *GRAPH]['latency_ms']['median']:.1f}." in text


# The rows of the tables of the published model's parts, by the places that they add up.
ROWS = {
    "experts": ("ffn.experts",),
    "router": ("ffn.route",),
    "self-attention: q, k, v and o": ("self.qkv", "self.o"),
    "cross attention: q and o": ("cross.q", "cross.o"),
    "attention to the context": ("cross.attention",),
    "self-attention over the beams": ("self.attention",),
    "dense feed-forward (2 of 14 layers)": ("ffn.gate_up", "ffn.down", "ffn.activation"),
    "norms with quantization": ("ffn.norm", "self.norm", "cross.norm"),
    "quantization of attention results": ("self.quantize",),
    "heads and beam steps": ("head", "beam"),
}


def by_place(times: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of an entry of `layer_times` by its places, those of all blocks together."""
    return {place["places"].removeprefix("blocks.*."): place["milliseconds"] for place in times["places"]}


@pytest.mark.parametrize(("card", "heading"), [("h100", "### Where the time goes on an H100"), ("h200", "### Where its time goes")])
def test_the_parts_of_the_published_model_are_the_whole(card: str, heading: str) -> None:
    times_of_plans = json.loads((DOCS / "measurements" / f"{card}-moe.json").read_text())["environment"]["layer_times"]
    head, _line, *rows = table_after(heading).values()
    assert [row[0] for row in rows] == [*ROWS, "elsewhere", "all layers", "the batch"]
    below = (DOCS / "performance.md").read_text().split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    columns = dict(zip(head[1:], zip(*(map(float, row[1:]) for row in rows), strict=True), strict=True))
    assert {shape_text(times) for times in times_of_plans} == {name for name in columns if "`" not in name}
    for name, (*parts, layers, batch) in columns.items():
        recipe, shape = ("fp16+kernels", name.removeprefix("`fp16`, ")) if "`" in name else ("fp8-row-block+kernels", name)
        (times,) = (each for each in times_of_plans if (shape_text(each), each["recipe"]) == (shape, recipe))
        by_part, taken = milliseconds_by_part(times), by_place(times)
        assert parts[:2] == [round(by_part[part], 1) for part in (EXPERTS, ROUTER)]
        exact = [sum(taken.get(place, 0.0) for place in places) for places in ROWS.values()]
        assert parts == [round(each, 1) for each in (*exact, times["milliseconds"] - sum(exact))]
        assert sum(parts) == pytest.approx(times["milliseconds"], abs=0.05 * len(parts)), "each part is rounded"
        latency = by_shape(f"{card}-moe.json")[shape]["tensorrt", recipe]["latency_ms"]["median"]
        assert [layers, batch] == [round(times["milliseconds"], 1), round(latency, 1)]
        share = times["milliseconds"] / latency
        assert times["batch"] < 32 or share == pytest.approx(1, abs=0.05) or f"{100 * share:.1f} % of the batch" in below


def test_the_documentation_says_how_far_the_parts_are_the_whole() -> None:
    environment = json.loads((DOCS / "measurements" / "h200-moe.json").read_text())["environment"]
    times = {(shape_text(each), each["recipe"]): each for each in environment["layer_times"]}
    share = {key: f"{100 * each['of_latency']:.1f} %" for key, each in times.items()}
    wide, eight, one, long, narrow = (share[shape, FP8[1]] for shape in by_shape("h200-moe.json"))
    page = (DOCS / "performance.md").read_text()
    assert f"their sum is {wide} of the batch, {long} at 3000 tokens, {share['32 x 512 x 512', FP16[1]]} in `fp16`." in page
    of_narrow = times[shape := "32 x 128-256-512 x 512", FP8[1]]["milliseconds"] / alone()[shape, *FP8]["latency_ms"]["median"]
    assert f"their sum is {narrow} of the batch in turns, {100 * of_narrow:.1f} % of the batch alone." in page
    assert f"their sum is {eight} and {one} of it." in page
    taken = by_place(times["32 x 512 x 3000", FP8[1]])
    linear, norm, features = (f"{taken[f'context.{name}']:.2f}" for name in ("linear", "key_norm_0", "features"))
    assert f"the context linear, {linear} ms, and the norm of its result, {norm}. [ContextFeatures]" in page
    assert f"pathway, takes {features} ms." in page


def test_the_documentation_shows_what_the_products_reach() -> None:
    """Multiply-adds of the published size by hand: 1408 channels, 14 layers of which 2 are dense; 12 have 4 experts for each row."""
    page = (DOCS / "performance.md").read_text()
    shown = {row[0]: list(map(float, row[1:])) for row in product_rows(page)}
    rows, square = 32 + 2 * 16384, 1408 * 1408
    weights = {
        "ffn.experts": 12 * 4 * 3 * square,
        "self.qkv": 14 * 3 * square,
        "self.o": 14 * square,
        "cross.q": 14 * square,
        "cross.o": 14 * square,
        "ffn.gate_up": 2 * 1408 * 2 * 5632,
        "ffn.down": 2 * 5632 * 1408,
    }
    layer_times = json.loads((DOCS / "measurements" / "h200-moe.json").read_text())["environment"]["layer_times"]
    taken = [
        by_place(times)
        for recipe in ("fp8-row-block+kernels", "fp16+kernels")
        for times in layer_times
        if (shape_text(times), times["recipe"]) == ("32 x 512 x 512", recipe)
    ]
    for places, row in zip([*([place] for place in weights), list(weights)], shown.values(), strict=True):
        tflop = sum(2 * rows * weights[place] for place in places) / 1e12
        milliseconds = [sum(each[place] for place in places) for each in taken]
        expected = [tflop, *(figure for ms in milliseconds for figure in (ms, tflop / ms * 1e3))]
        assert row == [float(f"{figure:.0f}" if figure > 100 else f"{figure:.2f}") for figure in expected]
    products = sum(taken[0][place] for place in weights)
    (layers,) = (each["milliseconds"] for each in layer_times if (shape_text(each), each["recipe"]) == ("32 x 512 x 512", FP8[1]))
    assert f"are {100 * products / layers:.0f} % of the layers**" in page
    assert f"**The rest**, {layers - products:.1f} ms" in page


def product_rows(page: str) -> list[list[str]]:
    """Of the table of products, below its head."""
    table = page.split("| part | TFLOP |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in table]


def test_the_documentation_shows_these_parts(measured: dict[str, Any]) -> None:
    shown = table_after("## Where the time goes")
    recipes = shown["part"][1:]
    by_recipe = {times["recipe"]: milliseconds_by_part(times) for times in measured["environment"]["layer_times"]}
    assert set(recipes) == set(by_recipe)
    for part in (part for part in PARTS if any(times[part] for times in by_recipe.values())):
        assert shown[part][1:] == [f"{by_recipe[recipe][part]:.1f}" for recipe in recipes]
