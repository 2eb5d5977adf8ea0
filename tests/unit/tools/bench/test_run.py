"""The benchmark without a GPU: batch shapes, interleaved samples, what makes a run count, and the result as it is written."""

from __future__ import annotations

import io
import itertools
import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onerec_trt.core.errors import GateError, RecipeError
from onerec_trt.models.config import SIZES, parse_config
from onerec_trt.runtime.layer_times import PlaceTime
from onerec_trt.runtime.machine import Machine
from onerec_trt.tools.bench import command as bench_command
from onerec_trt.tools.bench import run as benchmark
from onerec_trt.tools.bench.candidates import shared_items
from onerec_trt.tools.bench.case import Case, parse_case
from onerec_trt.tools.bench.result import Sampled, invalid_because, limits_ms, result_of
from onerec_trt.tools.bench.roofline import H200 as H200_RATES
from onerec_trt.tools.bench.sampling import interleaved_ms, summary, sustained_ms
from onerec_trt.tools.bench.table import terminal_tables
from onerec_trt.tools.environment import git_commit
from rich.console import Console

H200 = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.1", gpu="NVIDIA H200")
KEYS = {
    "model",
    "recipe",
    "engine",
    "batch",
    "beam",
    "context",
    "samples_ms",
    "latency_ms",
    "limit_ms",
    "requests_per_s",
    "plan_sha256",
}


@pytest.mark.parametrize(
    ("text", "case"), [("32x512x3000", Case(32, (512, 512, 512), 3000)), ("1x128-256-512x1", Case(1, (128, 256, 512), 1))]
)
def test_a_batch_shape_is_read(text: str, case: Case) -> None:
    assert parse_case(text) == case
    assert sum(case.lengths) == case.context


def test_a_context_that_no_plan_takes_is_no_batch_shape() -> None:
    assert parse_case("1x2x3072").context == 3072
    with pytest.raises(RecipeError, match=r"3073 tokens is too long(.|\n)*at most 3072"):
        parse_case("1x2x3073")


@pytest.mark.parametrize("text", ["", "32", "32x512", "0x512x512", "32x1-2x512", "32x1-2-3-4x512", "32x512x512x1", "-1x2x3", "32X512X512"])
def test_other_words_are_no_batch_shape(text: str) -> None:
    with pytest.raises(RecipeError, match="not a batch shape"):
        parse_case(text)


@pytest.mark.parametrize("text", ["32x3841x512", "32x128-256-4000x512"])
def test_no_more_beams_than_a_plan_can_keep(text: str) -> None:
    with pytest.raises(RecipeError, match="3840 beams at most"):
        parse_case(text)


def test_candidates_take_turns_after_warming_up() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken = interleaved_ms(runs, samples=30, synchronize=lambda: order.append("|"), warm_up=2)
    assert "".join(order[:6]) == "aabbcc"
    rounds = [order[6 + 9 * n : 15 + 9 * n] for n in range(30)]
    assert {("".join(each[::3]), "".join(each[2::3]), "".join(sorted(each[1::3]))) for each in rounds} == {("|||", "|||", "abc")}
    assert len({"".join(each) for each in rounds}) == 6  # every order comes
    assert {name: len(samples) for name, samples in taken.items()} == {"a": 30, "b": 30, "c": 30}
    assert all(sample >= 0 for samples in taken.values() for sample in samples)


def test_a_candidate_alone_is_timed_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = itertools.count(), 0

    def run() -> None:
        nonlocal runs
        runs += 1

    monkeypatch.setattr(time, "perf_counter", lambda: next(now))  # a second passes between two looks at the clock
    taken = sustained_ms(run, lambda: None, seconds=12, warm_up=6)
    assert set(taken) == {1000.0}
    assert 2 <= len(taken) < runs


def test_the_summary_interpolates() -> None:
    assert summary([float(i) for i in range(11)]) == {"median": 5.0, "p10": 1.0, "p90": 9.0}
    assert summary([2.0, 4.0])["median"] == 3.0


def test_items_in_common() -> None:
    mine = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 1, 1]]])
    theirs = torch.tensor([[[4, 5, 6], [1, 2, 3]], [[1, 2, 3], [7, 8, 9]]])
    assert shared_items(mine, theirs) == 0.75


def result(engine: Any, recipe: str, milliseconds: float, *, model: str = "0.5B", samples: int = 30) -> Any:
    sha = "0" * 64 if engine == "tensorrt" else None
    return result_of(model, SIZES[model], parse_case("32x512x512"), Sampled(engine, recipe, sha), [milliseconds] * samples, H200_RATES)


def test_a_result_holds_what_was_measured() -> None:
    values = result("tensorrt", "fp8-static", 50.0).model_dump(mode="json")
    assert values.keys() == KEYS
    assert (values["batch"], values["beam"], values["context"]) == (32, 512, 512)
    assert values["latency_ms"] == {"median": 50.0, "p10": 50.0, "p90": 50.0}
    assert values["requests_per_s"] == pytest.approx(640)
    limits = limits_ms(SIZES["0.5B"], parse_case("32x512x512"), H200_RATES)
    assert values["limit_ms"] == limits["fp8"] < limits["fp8, attention and heads in 16-bit"] < limits["16-bit"]
    assert result("tensorrt", "fp8-row+kernels", 50.0).limit_ms == limits["fp8"]
    for engine, recipe in (("tensorrt", "fp16"), ("tensorrt", "fp16+kernels"), ("torch-eager", "bf16")):
        assert result(engine, recipe, 50.0).limit_ms == limits["16-bit"]


@pytest.mark.parametrize(("milliseconds", "counts"), [(132.0, True), (138.5, True), (138.7, False)])
def test_a_baseline_slower_than_seen_before_does_not_count(milliseconds: float, counts: bool) -> None:
    problems = invalid_because([result("torch-cuda-graph", "bf16", milliseconds)], "NVIDIA H200")
    assert (problems == []) is counts
    assert counts or "it was seen at 132.0 ms" in problems[0]


def test_what_was_never_seen_is_not_judged() -> None:
    assert invalid_because([result("torch-cuda-graph", "bf16", 1e4)], "NVIDIA L40S") == []
    assert invalid_because([result("torch-cuda-graph", "bf16", 1e4, model="8B")], "NVIDIA H200") == []
    assert invalid_because([result("tensorrt", "fp16", 1e4)], "NVIDIA H200") == []


def test_too_few_samples_do_not_count() -> None:
    (problem,) = invalid_because([result("tensorrt", "fp16", 1.0, samples=29)], "NVIDIA L40S")
    assert "29 samples" in problem


ITEMS = torch.arange(2 * 4 * 3).view(2, 4, 3)


class StandInPlan:
    def __init__(self, *_: object) -> None: ...

    def __call__(self) -> torch.Tensor:
        return ITEMS.flip(1)

    def layer_times(self) -> list[PlaceTime]:
        return [PlaceTime(places="blocks.*.ffn.down", layers=6, milliseconds=1.25, kernels={"gemm": 6})] * 40


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU: candidates that give fixed items at once, one plan for each recipe."""

    def plans(options: benchmark.BenchOptions) -> dict[Any, Any]:
        gemms = SimpleNamespace(expected=4, found=4)
        facts = SimpleNamespace(
            sha256="1" * 64, bytes=7, weight_ratio=1.02, build_seconds=1.0, fp8_gemms=gemms, profiles=({"features": 1},)
        )
        made = [SimpleNamespace(record=facts, recipe=recipe, path=Path("p")) for recipe in options.recipes]
        return {(model, case.beam): made for model in options.models for case in options.cases}

    monkeypatch.setattr(benchmark, "this_machine", lambda _: H200)
    monkeypatch.setattr(benchmark, "prepare", plans)
    monkeypatch.setattr(benchmark, "load_runner", lambda plan: None)
    monkeypatch.setattr(benchmark, "torch_candidate", lambda *_: lambda: ITEMS)
    monkeypatch.setattr(benchmark, "PlanCandidate", StandInPlan)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of no GPU"))
    monkeypatch.setattr(benchmark, "sustained_ms", partial(sustained_ms, seconds=0, warm_up=0))
    monkeypatch.setattr(benchmark, "TorchBaseline", lambda source: SimpleNamespace(config=source.config))


def in_80_columns(report: dict[str, Any]) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in terminal_tables(report):
        console.print(table)
    return console.export_text()


def test_the_terminal_names_the_card_of_the_limits_where_it_is_another() -> None:
    report = json.loads((Path(__file__).parents[4] / "docs" / "measurements" / "h200-dense.json").read_text())
    assert "limits: those of" not in in_80_columns(report)
    report["environment"]["gpu"] = "NVIDIA L40S"
    text = " ".join(in_80_columns(report).split())
    assert "limits: those of NVIDIA H200 SXM, as the peak rates of NVIDIA L40S are not known" in text


def test_the_terminal_shows_every_candidate_whole_in_80_columns() -> None:
    report = json.loads((Path(__file__).parents[4] / "docs" / "measurements" / "h200-dense.json").read_text())
    text = in_80_columns(report)
    assert "…" not in text
    for measured in report["results"]:
        (line,) = [line for line in text.splitlines() if f"{measured['engine']} {measured['recipe']} " in line]
        assert f" {measured['latency_ms']['median']:.1f} " in line


@pytest.mark.usefixtures("stand_ins")
def test_the_file_is_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = parse_config({"d_model": 16, "n_layers": 1, "n_heads": 2, "d_head": 8, "embed_dim": 4, "codebook": 16})
    options = benchmark.BenchOptions(
        models={"small": small},
        cases=(parse_case("2x4x8"), parse_case("2x2-3-4x8")),
        recipes=("fp16", "fp8-static"),
        engines=("torch-eager", "torch-cuda-graph"),
        samples=30,
        folder=tmp_path,
        commit="abc",
    )
    report = benchmark.bench(options, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == report
    assert report.keys() == {"environment", "results"}
    assert all(values.keys() == KEYS for values in report["results"])
    engines = [(values["engine"], values["recipe"], values["plan_sha256"]) for values in report["results"][:4]]
    plan = "1" * 64
    assert engines == [
        ("torch-eager", "bf16", None),
        ("torch-cuda-graph", "bf16", None),
        ("tensorrt", "fp16", plan),
        ("tensorrt", "fp8-static", plan),
    ]
    assert [values["beam"] for values in report["results"]] == [4] * 4 + [[2, 3, 4]] * 4
    environment = report["environment"]
    assert (environment["gpu"], environment["tensorrt"], environment["commit"], environment["valid"]) == (
        "NVIDIA H200",
        "10.6.0",
        "abc",
        True,
    )
    assert "static scales from one forward pass" in environment["weights"]
    assert environment["agreement"][0]["share_of_items_of_the_first"]["tensorrt fp16"] == 1.0

    layers = environment["layer_times"]
    assert [(entry["recipe"], entry["beam"]) for entry in layers] == [
        (recipe, beam) for beam in (4, [2, 3, 4]) for recipe in ("fp16", "fp8-static")
    ]
    assert all(entry["milliseconds"] == 50 and len(entry["places"]) == 30 for entry in layers)
    assert all(entry["parts"]["matrix products"] == sum(entry["parts"].values()) == 50 for entry in layers)
    medians = [values["latency_ms"]["median"] for values in report["results"] if values["engine"] == "tensorrt"]
    assert [entry["of_latency"] for entry in layers] == [round(50 / median, 4) for median in medians]
    assert [(each["engine"], each["recipe"], each["beam"]) for each in environment["alone"]] == [
        (values["engine"], values["recipe"], values["beam"]) for values in report["results"]
    ]
    assert all(each["batches"] >= 2 and each["latency_ms"].keys() == {"median", "p10", "p90"} for each in environment["alone"])

    text = in_80_columns(report)
    assert "small, batch x beam x context 2 x 2-3-4 x 8" in text
    assert text.count("torch-cuda-graph") == 2


@pytest.mark.usefixtures("stand_ins")
def test_a_run_that_does_not_count_is_written_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = (out, ["1B"], ["2x4x8"], ["fp16"], ["torch-eager"], 5, 4, tmp_path, "abc", False, True)
    with pytest.raises(GateError, match="5 samples") as caught:
        bench_command.bench(*arguments)
    assert caught.value.exit_code == 2
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert "This run does not count" in out.with_suffix(".html").read_text()
    assert not report["environment"]["valid"]
    assert report["environment"]["models"]["1B-4layers"]["n_layers"] == 4


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: ["3B"]}, "no size '3B'"),
        ({3: ["fp4"]}, "no 'fp4'"),
        ({4: ["jax"]}, "no 'jax'"),
        ({6: 99}, "1B has 18 layers, not 99"),
        ({1: ["1B", "4B-A0.5B"], 3: ["fp8-static+kernels"]}, r"fp8-static\+kernels of 4B-A0.5B: static scales of experts"),
    ],
)
def test_unknown_words_are_refused(tmp_path: Path, change: dict[int, Any], message: str) -> None:
    arguments: list[Any] = [tmp_path / "b.json", ["1B"], ["2x4x8"], ["fp16"], ["torch-eager"], 5, 0, tmp_path, "abc", False, True]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RecipeError, match=message):
        bench_command.bench(*arguments)
    assert not (tmp_path / "b.json").exists()


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("sizes", "recipes"), [(["1B"], {"fp16", "fp8-static", "fp8-row"}), (["1B", "4B-A0.5B"], {"fp16", "fp8-row"})])
def test_recipes_that_were_not_named_are_those_every_size_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[str], recipes: set[str]
) -> None:
    asked: list[benchmark.BenchOptions] = []
    monkeypatch.setattr(benchmark, "prepare", lambda options: asked.append(options))
    bench_command.bench(tmp_path / "b.json", sizes, ["2x4x8"], [], ["torch-eager"], 5, 0, tmp_path, "abc", True, False)
    assert [set(options.recipes) for options in asked] == [recipes]


def test_the_commit_is_read_from_git() -> None:
    commit = git_commit()
    assert commit == "unknown" or len(commit.removesuffix("+changes")) == 40
