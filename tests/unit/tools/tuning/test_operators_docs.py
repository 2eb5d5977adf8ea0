"""The tables of kernels by themselves, in docs/performance.md and docs/kernels, say what the committed measurement says."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[4] / "docs"
REPORT: dict[str, Any] = json.loads((DOCS / "measurements" / "h200-operators.json").read_text())
RESULTS: list[dict[str, Any]] = REPORT["results"]
PERFORMANCE = DOCS / "performance.md"
PAGES = {
    "rms-norm": ("RmsNorm",),
    "rms-norm-quant": ("RmsNormQuantRow",),
    "swiglu": ("SwiGluQuantRow",),
    "linear": ("LinearAdd",),
    "fp8-linear": ("Fp8LinearAdd",),
    "linear-swiglu": ("LinearSwiGlu", "Fp8LinearSwiGluQuantTensor"),
    "context-attention": ("ContextAttention", "SharedContextAttention", "SharedContextAttentionQuantTensor"),
    "context-attention-fp8": ("ContextAttentionFp8",),
    "beam-self-attention": ("BeamSelfAttention2",),
    "beam-self-attention-quant": ("BeamSelfAttention2QuantRow",),
    "beam-step": ("BeamStep",),
    "moe-route": ("MoeRoute",),
}
SECTIONS = {
    "### Matrix products": ("LinearAdd", "Fp8LinearAdd"),
    "### SwiGLU in products": PAGES["linear-swiglu"],
    "### Attention to the context": (*PAGES["context-attention"], "ContextAttentionFp8"),
    "### Norms, SwiGLU and self-attention": (
        "RmsNorm",
        "RmsNormQuantRow",
        "SwiGluQuantRow",
        "BeamSelfAttention2",
        "BeamSelfAttention2QuantRow",
    ),
    "### Beam steps and the router": ("BeamStep", "MoeRoute"),
}
PRECISIONS = {
    "MoeExperts": "fp16",
    "MoeExpertsFp8Tensor": "fp8-static",
    "MoeExpertsFp8Row": "fp8-row",
    "MoeExpertsFp8RowBlock": "fp8-row-block",
    "MoeExpertsFp8Block": "fp8-paper",
}
FEW, MANY = ("32x1408x1408x54x4", "16384x1408x1408x54x4")
EXPERTS = {shape: [each for each in RESULTS if each["operator"] in PRECISIONS and each["shape"] == shape] for shape in (FEW, MANY)}
AS_FAST = 0.995  # a kernel whose library takes this share of its time is as fast


def name_of(result: dict[str, Any]) -> str:
    """Of experts their precision; what the variant adds of it."""
    promoted = ", promoted" if "every 128" in result["variant"] else ""
    return f"`{PRECISIONS[result['operator']]}`{promoted}" if result["operator"] in PRECISIONS else f"{result['operator']}{promoted}"


def shape_of(result: dict[str, Any]) -> str:
    width = f", {result['variant']}" if result["operator"] == "BeamStep" else ""
    return f"{result['shape'].replace('x', ' x ')}{width}"


def with_rate(result: dict[str, Any], when: str) -> str:
    """Microseconds, and TFLOP/s or, where memory decides, TB/s."""
    taken = result[when]["microseconds"]
    if result["tflops"]:
        return f"{taken:.1f} us, {result[when]['tflops']:.0f} TFLOP/s"
    bound_by_memory = result["operator"] not in SECTIONS["### Beam steps and the router"]
    tb_per_s = result["gbytes_per_s"] * result["microseconds"] / taken / 1e3
    return f"{taken:.1f} us, {tb_per_s:.2f} TB/s" if bound_by_memory else f"{taken:.1f} us"


def medians(result: dict[str, Any]) -> list[str]:
    """Of all samples, of kernel and library, which were taken in turns, and how many times as fast the kernel is."""
    kernel, library = result["microseconds"], result["library_microseconds"]
    return [f"{kernel:.1f} us", *([f"{library:.1f} us", f"{library / kernel:.2f}"] if library else ["none", "none"])]


def rows_of(operators: Iterable[str], named: bool) -> list[list[str]]:
    """A row for each measurement of the operators; named ones begin with the operator."""
    some = [each for operator in operators for each in RESULTS if each["operator"] == operator]
    named = named or len({name_of(each) for each in some}) > 1
    return [
        [*([name_of(each)] if named else []), shape_of(each), with_rate(each, "first"), with_rate(each, "sustained"), *medians(each)]
        for each in some
    ]


def both(part: dict[str, Any], unit: str, digits: int = 1) -> str:
    return " / ".join(f"{part[when][unit]:.{digits}f}" for when in ("first", "sustained"))


def rows_of_experts(shape: str) -> list[list[str]]:
    rows = []
    for each in EXPERTS[shape]:
        place, up, down, combine = each["parts"]
        rates = [both(part, "tflops", 0 if shape == MANY else 1) for part in (up, down)]
        share = [] if shape == MANY else [f"{100 * each['sustained']['of_memory_bandwidth']:.0f} %"]
        times = [both(part, "microseconds") for part in (place, combine)]
        rows.append([name_of(each), both(each, "microseconds"), *share, *rates, *times, *medians(each)])
    return rows


def rows_of_launches(shape: str) -> list[list[str]]:
    """First / sustained of every launch alone; SwiGLU is one, or in the up product."""
    rows = []
    for each in EXPERTS[shape]:
        taken = {}
        for launch in each["launches"]:
            product = "down" if "up" in taken else "up"
            name = {"moe_gemm": product, "moe_gemm_sm90": product, "moe_up_sm90": "up"}.get(launch["kernel"], launch["kernel"][4:])
            samples = launch["samples_us"]
            taken[name] = f"{samples[0]:.1f} / {statistics.median(samples[len(samples) // 2 :]):.1f}"
        before = ("rank", "place") if shape == FEW else ("number", "offset", "place")
        assert set(taken) - {"hidden"} == {*before, "up", "down", "combine"}
        rows.append([name_of(each), *(taken.get(name, "in up") for name in (*before, "up", "hidden", "down", "combine"))])
    return rows


def rows_of_steps() -> list[list[str]]:
    """Of the beam steps' launches, medians."""
    steps = [each for each in RESULTS if each["operator"] == "BeamStep"]
    kernels = ("beam_partials", "beam_totals", "beam_pick", "beam_finish")
    for each in steps:
        assert tuple(launch["kernel"] for launch in each["launches"]) == kernels
    return [[shape_of(each), *(f"{launch['microseconds']:.1f} us" for launch in each["launches"])] for each in steps]


def rows_of_route_and_place() -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for each in REPORT["route_and_place"]:
        rows.setdefault(name_of(each), []).append(" / ".join(f"{taken:.1f}" for taken in each["microseconds"].values()))
    return [[name, *taken] for name, taken in rows.items()]


def rows_at_the_limit() -> list[list[str]]:
    rows = []
    for each, clock in zip(RESULTS, REPORT["environment"]["clocks"], strict=True):
        n = each["shape"].rpartition("x")[2]
        if each["operator"] in SECTIONS["### Matrix products"] and n != "1408":
            assert clock["at_power_limit"] == 1
            slower = each["sustained"]["microseconds"] / each["first"]["microseconds"] - 1
            seen = f"{clock['mhz']} MHz, {clock['watts']} W"
            rows.append([name_of(each), n, with_rate(each, "first"), with_rate(each, "sustained"), f"{100 * slower:.0f} %", seen])
    return rows


def rows_of_slower_ones() -> list[list[str]]:
    slower = [each for each in RESULTS if each["library_microseconds"] and each["library_microseconds"] < AS_FAST * each["microseconds"]]
    return [[name_of(each), shape_of(each), *medians(each)] for each in slower]


def shown(page: Path, heading: str, number: int = 0) -> list[list[str]]:
    """The rows of a table below a heading, without its head."""
    text = page.read_text().split(f"\n{heading}\n", 1)[1]
    text = re.split(rf"\n#{{1,{len(heading.split()[0])}}} ", text, maxsplit=1)[0]
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n?)+", text, re.M)]
    return [line.strip("| ").split(" | ") for line in tables[number][2:]]


def as_text(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_every_operator_has_its_tables() -> None:
    measured = {each["operator"] for each in RESULTS}
    assert measured == {operator for operators in PAGES.values() for operator in operators} | set(PRECISIONS)
    assert measured == {operator for operators in SECTIONS.values() for operator in operators} | set(PRECISIONS)
    assert REPORT["environment"]["failures"] == []


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_page_of_performance_shows_every_operator(heading: str) -> None:
    assert shown(PERFORMANCE, heading) == rows_of(SECTIONS[heading], named=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_kernel_s_page_shows_its_operators(page: str) -> None:
    text = (DOCS / "kernels" / f"{page}.md").read_text()
    assert "measurements/h200-operators.json" in text
    assert f"\n{as_text(rows_of(PAGES[page], named=False))}\n" in text


@pytest.mark.parametrize(("number", "shape"), enumerate((MANY, FEW)))
def test_experts_are_shown_in_their_parts_and_launches(number: int, shape: str) -> None:
    assert shown(PERFORMANCE, "### Experts", number) == rows_of_experts(shape)
    assert shown(DOCS / "kernels" / "moe-experts.md", "## Speed", number) == rows_of_launches(shape)


def test_pages_show_launches_and_what_comes_before_the_experts() -> None:
    assert as_text(rows_of_steps()) in (DOCS / "kernels" / "beam-step.md").read_text()
    assert as_text(rows_of_route_and_place()) in (DOCS / "kernels" / "moe-route.md").read_text()


def test_what_is_slower_than_its_library_is_said() -> None:
    slower = rows_of_slower_ones()
    assert shown(PERFORMANCE, "## Operators") == slower
    ratios = [each["library_microseconds"] / each["microseconds"] for each in RESULTS if each["library_microseconds"]]
    faster = [ratio for ratio in ratios if ratio >= 1 / AS_FAST]
    as_fast = len(ratios) - len(slower) - len(faster)
    said = f"Of {len(ratios)} kernels with a library beside them {len(faster)} are {min(faster):.2f} to {max(faster):.1f} times as fast"
    alike = f", {as_fast} is as fast" if as_fast else ""
    assert f"{said}{alike}, {len(slower)} are slower" in PERFORMANCE.read_text()


def test_shares_of_the_memory_bandwidth() -> None:
    share = {(each["operator"], each["shape"]): round(100 * each["sustained"]["of_memory_bandwidth"]) for each in RESULTS}
    norms = sorted(share["RmsNormQuantRow", shape] for shape in ("16384x1408", "65536x1408"))
    said = f"RmsNorm sustains {share['RmsNorm', '16384x1408']} % of the data sheet's 4.8 TB/s, SwiGLU with codes "
    said += f"{share['SwiGluQuantRow', '16384x11264']} %, the norm with codes {norms[0]} and {norms[1]} %"
    assert said in PERFORMANCE.read_text()


def test_sentences_about_experts_and_attention_in_fp8() -> None:
    sustained = {(name_of(each), each["shape"]): each["sustained"]["microseconds"] for each in RESULTS}
    gains = [sustained["`fp16`", MANY] / sustained[f"`{name}`", MANY] for name in ("fp8-static", "fp8-row", "fp8-row-block")]
    libraries = [each["tflops"] * each["microseconds"] / each["library_microseconds"] for each in EXPERTS[MANY][1:]]
    kernels = ("ContextAttentionFp8", "SharedContextAttention")
    few, many = ([sustained[name, f"32x11x512x{tokens}x128"] for name in kernels] for tokens in (512, 3000))
    for said in (
        f"**FP8 is {min(gains):.2f} to {max(gains):.2f} times as fast as FP16** sustained",
        f"reach {min(libraries):.0f} to {max(libraries):.0f} TFLOP/s in FP8",
        "sustained {:.1f} us, in FP16 {:.1f}. At 512 tokens it takes {:.1f}, in FP16 {:.1f}.".format(*many, *few),
    ):
        assert said in PERFORMANCE.read_text()


def test_large_products_at_the_power_limit() -> None:
    assert shown(PERFORMANCE, "### Large products at the power limit") == rows_at_the_limit()


def test_the_commit_is_that_of_the_file() -> None:
    commit = REPORT["environment"]["commit"]
    line = next(line for line in (DOCS / "measurements" / "README.md").read_text().splitlines() if line.startswith("| [h200-operators"))
    assert line.endswith(f"| `{commit}` |")
    assert f"`{commit}`" in PERFORMANCE.read_text().split("\n## Operators\n", 1)[1]


def test_fast_and_promoted_sums_of_large_products() -> None:
    rates = {(each["shape"], name_of(each)): each["sustained"]["tflops"] for each in RESULTS if each["operator"] == "Fp8LinearAdd"}
    expected = [
        [f"N {n}", *(f"{rates[f'16384x1408x{n}', name]:.0f} TFLOP/s" for name in ("Fp8LinearAdd", "Fp8LinearAdd, promoted"))]
        for n in (1408, 4224, 5632)
    ]
    (said, *differences), *rows = shown(DOCS / "kernels" / "fp8-linear.md", "## Fast or promoted")
    assert said == "difference from PyTorch"
    assert rows == expected
    measured = [each for each in REPORT["environment"]["differences"] if each["operator"] == "Fp8LinearAdd"]
    for number, promoted in zip(differences, (False, True), strict=True):
        largest = max(each["difference"] for each in measured if each["variant"].endswith("every 128") == promoted)
        assert float(number) == float(f"{largest:.1e}")


def kind_of(each: dict[str, Any]) -> str:
    """The row of the table of differences that a measurement belongs to."""
    if each["operator"] in PRECISIONS:
        return "experts, 32 tokens" if each["shape"] == FEW else f"experts, 16384 tokens, {name_of(each)}"
    return {
        "Fp8LinearAdd": "FP8 products, never promoted",
        "Fp8LinearAdd, promoted": "FP8 products, promoted every 128",
        "LinearSwiGlu": "gate and up with SwiGLU in FP16",
        "Fp8LinearSwiGluQuantTensor": "the same in codes, never promoted",
        "Fp8LinearSwiGluQuantTensor, promoted": "the same in codes, promoted every 128",
        "ContextAttention": "context attention in FP16",
        "SharedContextAttention": "context attention in FP16",
        "ContextAttentionFp8": "context attention in FP8",
        "SwiGluQuantRow": "SwiGLU codes, codes of self-attention",
        "BeamSelfAttention2QuantRow": "SwiGLU codes, codes of self-attention",
    }.get(name_of(each), "all others")


def test_differences_from_pytorch() -> None:
    """Each row of the table is the largest of the cases that it names."""
    largest: dict[str, float] = {}
    for each in REPORT["environment"]["differences"]:
        largest[kind_of(each)] = max(largest.get(kind_of(each), 0.0), each["difference"])
    assert largest.pop("all others") < 1e-9
    expected = {kind: f"{difference:.1e}".replace("e-0", "e-") for kind, difference in largest.items()}
    rows = shown(PERFORMANCE, "### Differences from the PyTorch reference")
    assert dict(rows[:-1]) == expected
    assert rows[-1] == ["all others", "below 1e-9"]
