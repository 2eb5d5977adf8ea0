"""The report says what the inputs say, needs nothing beside it, and takes no name for markup."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.export.lint import Finding
from onerec_trt.tools.report import RecipeRun, write_report
from onerec_trt.tools.report.content import comparison, verdict
from onerec_trt.validation.gates import gate
from onerec_trt.validation.scoring_parity import ErrorRatios, ScoringErrors

from .report_runs import load

MakeRun = Callable[..., Path]
NOT_KNOWN = ErrorRatios(mean=math.nan, mean_interval=(math.nan, math.nan), typical=math.nan, typical_interval=(math.nan, math.nan))
_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Text outside scripts, table rows, attributes, script contents by id, and whether every tag was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: dict[str | None, str] = {}
        self._open: list[str] = []
        self._script: str | None = None
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")
        if tag == "script":
            self._script = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif "style" not in self._open:
            self.words.append(data)
            if "td" in self._open or "th" in self._open:
                self.rows[-1][1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, first: str) -> list[str]:
        (found,) = [cells for _, cells in self.rows if cells[0].startswith(first)]
        return found[1:]

    @property
    def plots(self) -> dict[str, Any]:
        plots: dict[str, Any] = json.loads(self.scripts["plots-data"])
        return plots


def page_of(runs: list[RecipeRun], path: Path, **options: Any) -> Page:
    write_report(runs, path, title="A report", context={"model": {"d_model": 128}, "hit@10 FP32": 0.4425, "requests": 321}, **options)
    return Page(path.read_text())


@pytest.fixture
def two_pages(make_run: MakeRun, tmp_path: Path) -> Page:
    runs = [load(make_run("first", precision="fp16")), load(make_run("second"))]
    return page_of(runs, tmp_path / "report.html")


def test_recipes_stand_side_by_side_with_their_values(two_pages: Page) -> None:
    assert two_pages.row("hit@10requests") == ["43.8 %", "43.8 %"]
    assert two_pages.row("hit@10 of FP32") == ["44.2 %"] * 2
    assert two_pages.row("difference") == ["-0.50 [-1.25, +0.25]"] * 2
    assert two_pages.row("overlap@10")[0] == "93.8 %"
    assert two_pages.row("top-1 agreement")[0] == "98.8 %"
    assert two_pages.row("tie band")[0] == "0.0125 nat; 8.8 %"
    assert two_pages.row("score regret")[0] == "0.00321 nat"
    assert two_pages.row("scoring error against")[0] == "0.0202 nat"
    assert two_pages.row("scoring error ratio")[0] == "1.012"
    assert two_pages.row("linears in FP8") == ["0 of 7", "6 of 7"]
    assert two_pages.row("weights")[0] == "5.0 KiB"
    assert two_pages.row("plan, compute capability 12.0")[1] == "11.7 KiB; 18 of 18"
    for name in ("first", "second"):
        assert two_pages.text.count(name) >= 4
    assert "hit@10 FP32 0.4425" in two_pages.text
    assert "d_model 128" in two_pages.text


BUILT = {"baseline": ("tensorrt", "fp16", False), "native": ("tensorrt", "fp8-row", False), "rtx": ("tensorrt-rtx", None, False)}
RUN_IT = " Run onerec-trt validate --engine tensorrt before you ship those of TensorRT."
NOT_YET = " Those of TensorRT-RTX were built without their GPU: what passed is the ONNX file they were made from."


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("baseline good", "The plan was validated on a GPU."),
        ("good native", "1 of 2 plans are not validated on a GPU." + RUN_IT),
        ("rtx", "1 of 1 plans are not validated on a GPU." + NOT_YET),
        ("rtx native baseline", "2 of 2 plans are not validated on a GPU." + RUN_IT + NOT_YET),
    ],
)
def test_what_is_said_of_plans(names: str, sentence: str) -> None:
    built = {**BUILT, "good": ("tensorrt", "fp8-row", True)}
    found = {name: SimpleNamespace(target=t, precision=p, validated=v) for name in names.split() for t, p, v in [built[name]]}
    run: Any = SimpleNamespace(engines=["tensorrt"], plans=found, precision="fp8-row")
    said = verdict([run], [])
    assert (said.plans, said.seen) == (sentence, names == "baseline good")


def test_passing_gates_and_plans_no_gpu_has_seen(two_pages: Page) -> None:
    assert "All 2 recipes passed every gate" in two_pages.text
    assert "4 of 4 plans are not validated on a GPU" in two_pages.text
    assert two_pages.text.count("NOT validated on a GPU") == 2
    assert two_pages.text.count("4 of 4 gates passed") == 2


def test_validated_plans_are_not_called_open(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of([load(make_run("one", validated=True))], tmp_path / "report.html")
    assert "NOT validated" not in page.text
    assert "All 2 plans were validated on a GPU." in page.text


def test_failing_gates_come_first_and_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    gates = [
        gate("holds", "bad", 0.5, "<=", 1.0),
        gate("too large", "bad", 1.25, "<=", 1.1, "block 1 drifts"),
        gate("no number", "bad", float("nan"), "<=", 1.0),
    ]
    runs = [load(make_run("good")), load(make_run("bad", gates=gates))]
    page = page_of(runs, tmp_path / "report.html")
    rows = [(kind, cells[1]) for kind, cells in page.rows if kind in ("passed", "failed")]
    assert rows[:3] == [("failed", "too large"), ("failed", "no number"), ("passed", "holds")]
    assert all(kind == "passed" for kind, _ in rows[3:])
    assert "Do not ship: bad fails 2 of 3 gates." in page.text
    assert "1 of 3 gates passed" in page.text
    (large,) = [cells for _, cells in page.rows if cells[1:2] == ["too large"]]
    assert large == ["✗ failed", "too large", "1.25", "≤ 1.1", "block 1 drifts"]
    (unsaid,) = [cells for _, cells in page.rows if cells[1:2] == ["no number"]]
    assert unsaid[2] == "not finite"


def test_a_recipe_without_gates_has_not_passed(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of([load(make_run("empty", gates=[]))], tmp_path / "report.html")
    assert "Do not ship: empty has no gates." in page.text


def test_gates_on_the_whole_run_count(make_run: MakeRun, tmp_path: Path) -> None:
    extra = [gate("model is good enough", "fp32", 0.1, ">=", 0.2)]
    page = page_of([load(make_run("one"))], tmp_path / "report.html", extra_gates=extra)
    assert "Do not ship: whole run fails 1 of 1 gates." in page.text
    assert any(kind == "failed" and cells[1] == "model is good enough" for kind, cells in page.rows)


def test_nothing_is_loaded_from_anywhere(two_pages: Page) -> None:
    links = [value for _, name, value in two_pages.attributes if name in ("src", "href", "srcset", "action")]
    anchors = {f"#{value}" for tag, name, value in two_pages.attributes if tag == "section" and name == "id"}
    assert set(links) <= anchors
    assert len(links) > 5
    (policy,) = [
        value for tag, name, value in two_pages.attributes if tag == "meta" and name == "content" and "default-src" in (value or "")
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:", policy)
    assert "showSendToCloud: false" in two_pages.scripts[None]  # plotly offers to send charts away unless told not to


def test_every_plot_has_its_place_its_data_and_the_inputs(two_pages: Page) -> None:
    places = {value.removeprefix("plot-") for tag, name, value in two_pages.attributes if tag == "div" and name == "id" and value}
    assert places == set(two_pages.plots)
    assert {"gates-plot", "operators", "layers", "weights-0", "activations-0", "score-error", "snr", "coverage-0", "sizes"} <= places
    coverage = two_pages.plots["coverage-0"]["data"][0]
    assert coverage["z"] == [[41, 3]]
    assert coverage["text"] == [["41", "3 ▾"]]
    sizes = two_pages.plots["sizes"]["data"]
    assert [trace["name"] for trace in sizes] == ["first", "second"]
    assert [size * 2**20 for size in sizes[0]["x"]] == [9216, 5120, 12000, 12000]
    for plot in two_pages.plots.values():
        assert "template" not in plot["layout"]


def test_experts_are_one_row_on_the_cautious_side(two_pages: Page) -> None:
    histogram, p99, absmax, variance = two_pages.plots["weights-0"]["data"]
    assert histogram["y"] == ["0 · self q", "0 · ffn experts gate", "1 · self q", "1 · ffn experts gate"]
    assert absmax["customdata"] == [0.25, 0.5, 0.625, 0.875]  # experts have 0.375 and 0.5, then 0.75 and 0.875
    assert p99["customdata"] == [value / 2 for value in absmax["customdata"]]
    assert variance["customdata"] == pytest.approx([0.01, 0.025, 0.04, 0.055])
    by_name = {(trace["name"], trace["xaxis"]): trace for trace in two_pages.plots["snr"]["data"]}
    assert by_name["second", "x"]["x"] == [31.0, 29.0, 28.0, 26.0]
    assert by_name["first", "x"]["x"] == []


def test_what_rounding_does_to_scores_stands_before_the_signal_to_noise_ratio(two_pages: Page) -> None:
    places = [value for tag, name, value in two_pages.attributes if tag == "div" and name == "id" and value]
    assert places.index("plot-score-error") + 1 == places.index("plot-snr")
    for trace in two_pages.plots["score-error"]["data"]:  # of the recipe in FP16, too
        assert trace["y"] == ["0 · self q", "0 · ffn experts gate", "1 · self q", "1 · ffn experts gate"]
        assert trace["x"] == pytest.approx([0.001, math.hypot(0.002, 0.003), 0.004, math.hypot(0.005, 0.006)])


def test_layers_that_a_recipe_keeps_in_fp16_are_told(make_run: MakeRun) -> None:
    plain, mixed = load(make_run("plain")), load(make_run("mixed"))
    assert "kept in FP16" not in [measure.name for measure in comparison([plain])]
    mixed = replace(mixed, quantization=mixed.quantization.model_copy(update={"keep_fp16": ("cross.o", "blocks.0.*")}))
    (row,) = (measure for measure in comparison([plain, mixed]) if measure.name == "kept in FP16")
    assert row.cells == ("—", "cross.o, blocks.0.*")


def test_warnings_findings_and_hashes_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    finding = Finding(rule="topk-limit", severity="warning", where="step0.beam", what="top-k is large", hint="reduce it")
    run = load(make_run("one", warnings=("blocks.1.ffn: experts below 32",), findings=(finding,)))
    page = page_of([run], tmp_path / "report.html")
    assert ["one", "calibration", "", "blocks.1.ffn: experts below 32"] in [cells for _, cells in page.rows]
    assert ["one", "lint: topk-limit, warning", "step0.beam", "top-k is large (reduce it)"] in [cells for _, cells in page.rows]
    for record in run.records.values():
        for digest in (*record.read.values(), *record.wrote.values()):
            assert digest in page.text
    assert page.row("torch") == [run.records["calibrated"].tools["torch"]]


def test_names_are_no_markup(make_run: MakeRun, tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script><img src=x>"
    run = load(make_run(name, warnings=("<b onclick=x>bold</b>",)))
    page = page_of([run], tmp_path / "report.html")
    assert page.text.count(name) >= 4
    assert "<b onclick=x>bold</b>" in page.text
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]
    assert name not in json.dumps(page.plots)  # plotly would take tags in a name for markup


def test_a_run_without_statistics_still_has_a_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = load(make_run("random"))
    bare = run.quantization.model_copy(update={"weights": (), "activations": (), "experts": (), "histogram_log10_edges": ()})
    stripped = RecipeRun(**{**vars(run), "quantization": bare})
    assert set(page_of([stripped], tmp_path / "report.html").plots) == {"gates-plot", "operators", "layers", "sizes"}


def test_errors_that_are_not_finite_are_said(make_run: MakeRun, tmp_path: Path) -> None:
    run = load(make_run("one"))
    nan = float("nan")
    found = run.validation.model_copy(
        update={
            "scoring": ScoringErrors(engine=nan, quantized=0.02, engine_kl=nan, quantized_kl=0.0015, ratios=NOT_KNOWN, kl_ratios=NOT_KNOWN)
        }
    )
    page = page_of([RecipeRun(**{**vars(run), "validation": found})], tmp_path / "report.html")
    assert page.row("scoring error against FP32") == ["not finite"]
    assert page.row("scoring error ratio") == page.row("root KL ratio") == ["not finite"]


def test_what_a_log_axis_cannot_show_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    run = load(make_run("one"))
    broken = run.validation.operators[1].model_copy(update={"difference": None, "passed": False})
    found = run.validation.model_copy(update={"operators": [broken]})
    page = page_of([RecipeRun(**{**vars(run), "validation": found})], tmp_path / "report.html")
    assert "not finite: one step0.blocks.0.self.q" in page.text


@pytest.mark.parametrize(("names", "message"), [((), "no recipe"), (("same", "same"), "named alike: same, same")])
def test_runs_that_cannot_be_told_apart_are_refused(make_run: MakeRun, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    path = tmp_path / "report.html"
    path.write_text("an earlier report")
    with pytest.raises(ArtifactError, match=message):
        write_report([load(make_run(name)) for name in names], path, title="t", context={})
    assert path.read_text() == "an earlier report"
