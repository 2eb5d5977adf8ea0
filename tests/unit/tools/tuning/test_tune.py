"""Tuning and the benchmark of operators without a GPU: what is tried, how a winner is chosen and kept, what the result holds."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onerec_trt.core.dtypes import DTYPES
from onerec_trt.core.errors import BuildError, GateError, GpuError, RecipeError
from onerec_trt.operators.kernels.context_attention import context_attention_case
from onerec_trt.operators.kernels.linear import linear_add_case
from onerec_trt.operators.kernels.moe_cases import expert_parts, moe_experts_case, moe_experts_cases
from onerec_trt.operators.kernels.quant import quant_row_case
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case, Library, Measurement, TileKey, Tuning
from onerec_trt.operators.launch.program import Kernel
from onerec_trt.operators.launch.tiles import TABLE, RowTile, committed_tiles, read_tiles
from onerec_trt.tools.cli import app
from onerec_trt.tools.tuning import benchmark, parity, tune
from onerec_trt.tools.tuning.rates import rates, route_and_place

CASE = quant_row_case(64, 256)
SCHEMA = {
    *("operator", "shape", "variant", "samples_us", "microseconds", "tflops", "gbytes_per_s", "library", "library_microseconds"),
    *("launches", "parts", "first", "sustained"),
}  # fmt: skip

REPORT: dict[str, Any] = {  # of a run in which the only kernel failed
    "environment": {
        **{"gpu": "none", "compute_capability": "9.0", "timing": "by a clock", "differences": [], "clocks": []},
        "failures": [{"operator": "QuantRow", "shape": "32x256", "variant": "row scales", "problem": "differs by 1"}],
    },
    "results": [],
}


class Sampler:
    """Stands for a captured graph that takes a given time."""

    def __init__(self, microseconds: float) -> None:
        self.microseconds = microseconds

    def sample_us(self) -> float:
        return self.microseconds


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch) -> None:
    """Inputs on the CPU; nothing is compiled or launched; each kernel takes as many microseconds as its program has warps."""
    for module in (tune, benchmark):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "difference_of", lambda *_: 0.0)
        monkeypatch.setattr(module, "this_capability", lambda: "9.0")
        monkeypatch.setattr(module, "new_outputs", lambda _, inputs: inputs[:1])
        monkeypatch.setattr(module, "bind", lambda program, *_: program)
        monkeypatch.setattr(module, "captured", lambda runs, *_: Sampler(warps_of(runs[0])))
        monkeypatch.setattr(module.torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(benchmark, "new_scratch", lambda *_: [])
    monkeypatch.setattr(benchmark, "REST_S", 0)
    monkeypatch.setattr(tune, "compile_many", lambda builds, _: {n: Kernel(b"-", "-", b.warps, 0, 0) for n, b in enumerate(builds)})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of no GPU", name="NVIDIA H100 80GB HBM3"))


def warps_of(program) -> float:
    return float(program.variants[0].launches[0].kernel.warps)


def test_the_fastest_goes_into_a_new_table_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "tunings", lambda: iter([Tuning(CASE, ("quant",))]))
    installed, table = TABLE.read_bytes(), tmp_path / "tiles.json"
    (tuned,) = tune.tune(table, tmp_path / "log.json", say=lambda _: None)
    assert TABLE.read_bytes() == installed
    (logged,) = json.loads((tmp_path / "log.json").read_text())
    assert [each["microseconds"] for each in logged["tried"]] == sorted(tuned.tried_us.values())
    assert isinstance(tuned.tile, RowTile)
    assert (tuned.tile.warps, tuned.microseconds, tuned.before_us) == (1, 1.0, 4.0)
    written = read_tiles(table)
    assert written.classes("9.0", "quant", (256,))[0].tile == tuned.tile
    assert {e for e in committed_tiles().entries if e.family != "quant"} <= set(written.entries)


def test_a_winner_that_differs_from_pytorch_leaves_no_table(tmp_path, monkeypatch):
    def differs(*_):
        raise GateError("the kernel differs")

    monkeypatch.setattr(tune, "tunings", lambda: iter([Tuning(CASE, ("quant",))]))
    monkeypatch.setattr(tune, "difference_of", differs)
    with pytest.raises(GateError):
        tune.tune(tmp_path / "tiles.json", say=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_no_candidate_that_compiles_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "tunings", lambda: iter([Tuning(CASE, ("quant",))]))
    monkeypatch.setattr(tune, "compile_many", lambda builds, _: {n: BuildError("no") for n, _ in enumerate(builds)})
    with pytest.raises(BuildError, match="no candidate compiles"):
        tune.tune(tmp_path / "tiles.json", say=lambda _: None)


def test_the_command_writes_beside_the_caller_and_says_where_the_table_belongs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "tunings", lambda: iter([Tuning(CASE, ("quant",))]))
    monkeypatch.chdir(tmp_path)
    installed = TABLE.read_bytes()
    app(["dev", "tune"], standalone_mode=False)
    assert read_tiles(tmp_path / "tiles.json").classes("9.0", "quant", (256,))[0].tile.warps == 1
    assert "tiles.json: to use these tiles, put the file in the place of operators/kernels/tiles.json" in capsys.readouterr().out
    assert TABLE.read_bytes() == installed


def test_every_family_of_the_table_is_tuned():
    tuned = {family for tuning in tune.tunings() for family in tuning.families}
    assert tuned == {entry.family for entry in committed_tiles().entries}


@pytest.mark.parametrize("capability", ["8.9", "9.0", "12.0"])
def test_candidates_make_programs(capability):
    for tuning in tune.tunings():
        tiles = list(tune.candidates(tuning.case, capability))
        assert tiles
        for tile in tiles:
            table = tune.table_with(tuning, tile, capability)
            assert program_of(tuning.case, capability, table, lambda build: Kernel(b"-", "-", build.warps, 0, 0)).variants


def measured(tmp_path: Path, monkeypatch, call, case: Case = CASE, *others: Case, say=lambda _: None, **given) -> dict:
    library = Library("torch", lambda _: call)
    monkeypatch.setattr(
        benchmark, "measurements", lambda _: iter([Measurement(each, "row scales", library, **given) for each in (case, *others)])
    )
    monkeypatch.setattr(benchmark, "_environment", lambda *_: {"gpu": "none"})
    monkeypatch.setattr(benchmark, "_captured_library", lambda each, inputs: each.prepare(inputs[0])())
    monkeypatch.setattr(benchmark, "copies_of", lambda _: 2)
    program = program_of(case, "9.0", compile_with=lambda build: Kernel(b"-", build.function, build.warps, 0, 0))
    monkeypatch.setattr(benchmark, "program_of", lambda *_, **__: program)
    out = tmp_path / "operators.json"
    assert benchmark.bench_operators(out, 3, say) == json.loads(out.read_text())
    return json.loads(out.read_text())


@pytest.mark.parametrize(("gpu", "said"), [("NVIDIA H100 80GB HBM3", False), ("NVIDIA L40S", True)])
def test_the_bandwidth_of_another_card_is_named(tmp_path, monkeypatch, gpu, said):
    lines: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="of no GPU", name=gpu))
    measured(tmp_path, monkeypatch, lambda: Sampler(9.0), say=lines.append)
    named = "of_memory_bandwidth goes by NVIDIA H200 SXM, as the peak rates of NVIDIA L40S are not known"
    assert (named in lines) is said


def test_the_result_has_its_schema(tmp_path, monkeypatch):
    report = measured(tmp_path, monkeypatch, lambda: Sampler(9.0))
    (result,) = report["results"]
    assert set(result) == SCHEMA
    assert (result["samples_us"], result["microseconds"], result["library_microseconds"]) == ([4.0] * 3, 4.0, 9.0)
    assert result["gbytes_per_s"] == pytest.approx(2 * 64 * 256 * 2 / 4e3, abs=0.1)
    assert result["launches"] == result["parts"] == []  # it is one
    assert result["first"] == result["sustained"]
    assert result["sustained"]["of_memory_bandwidth"] == pytest.approx(2 * 64 * 256 * 2 / 4e-6 / 3.35e12, abs=1e-4)
    assert report["route_and_place"] == report["environment"]["failures"] == []
    benchmark.require_all(report, tmp_path / "operators.json")
    assert report["environment"]["differences"][0]["difference"] == 0
    (clock,) = report["environment"]["clocks"]
    assert (clock["operator"], clock["shape"], clock["readings"], clock["mhz"]) == ("QuantRow", "64x256", 0, None)
    assert "us" in benchmark.line(result)


def test_each_launch_of_a_program_is_timed(tmp_path, monkeypatch):
    case = moe_experts_case("MoeExpertsFp8RowBlock", 4, 128, 128, 3, 2)
    (result,) = measured(tmp_path, monkeypatch, lambda: Sampler(9.0), case, read_bytes=lambda _: 8000 - 4 * 128)["results"]
    kernels = ["moe_rank", "moe_place", "moe_gemm", "moe_hidden", "moe_gemm", "moe_combine"]
    assert [each["kernel"] for each in result["launches"]] == kernels
    assert [each["microseconds"] for each in result["launches"]] == [4, 1, 4, 1, 4, 1]  # warps of their tiles for few rows
    assert result["gbytes_per_s"] == 2.0


def test_parts_of_the_experts_are_those_of_their_launches(tmp_path, monkeypatch):
    case = moe_experts_case("MoeExpertsFp8RowBlock", 4, 128, 128, 3, 2)
    (result,) = measured(tmp_path, monkeypatch, lambda: Sampler(9.0), case, parts=partial(expert_parts, case))["results"]
    place, up, down, combine = result["parts"]
    assert [part["kernels"] for part in (place, up, down, combine)] == [
        ["moe_rank", "moe_place"],
        ["moe_gemm", "moe_hidden"],
        ["moe_gemm"],
        ["moe_combine"],
    ]
    assert [part["sustained"]["microseconds"] for part in (place, up, down, combine)] == [5, 5, 4, 1]
    rates_of = [6 * 4 * 2 * 128 * 128 * share / us / 1e6 for share, us in ((2 / 3, 5), (1 / 3, 4))]
    assert [part["first"]["tflops"] for part in (up, down)] == [pytest.approx(rate, abs=0.1) for rate in rates_of]
    assert benchmark.part_line(combine) == "    combine: first 1.0 us, sustained 1.0 us"


@pytest.mark.parametrize(
    "measurement",
    [m for m in benchmark.measurements() if m.case.operator.startswith("MoeExperts")],
    ids=lambda m: f"{m.case.operator} {m.case.rows} {m.variant}",
)
def test_each_product_of_the_experts_has_its_launch(measurement):
    case = measurement.case
    program = program_of(case, "9.0", compile_with=lambda build: Kernel(b"-", build.function, build.warps, 0, 0))
    kernels = [launch.kernel.entry for launch in program.variant([each.shape for each in case.inputs]).launches]
    parts = measurement.parts(kernels)
    assert [number for part in parts for number in part.launches] == list(range(len(kernels)))
    assert sum(part.flops for part in parts) == case.flops


def test_rates_of_the_first_sample_and_of_the_later_half():
    found = rates([1.0, 5.0, 2.0, 4.0, 4.0, 2.0], flops=8_000_000, moved=6_700_000, bytes_per_second=3.35e12)
    assert found["first"] == {"microseconds": 1.0, "tflops": 8.0, "of_memory_bandwidth": 2.0}
    assert found["sustained"] == {"microseconds": 4.0, "tflops": 2.0, "of_memory_bandwidth": 0.5}


def test_routing_and_placing_are_added_up_where_tokens_are_as_many():
    def taking(operator, shape, first, sustained, parts=()):
        times = {"first": {"microseconds": first}, "sustained": {"microseconds": sustained}}
        return {"operator": operator, "shape": shape, "variant": "v", "parts": [{"name": p, **times} for p in parts], **times}

    results = [taking("MoeRoute", "32x8x3x2", 1.0, 2.0), taking("MoeExperts", "32x8x8x3x2", 3.0, 5.0, ("rank and place", "down"))]
    alone = taking("MoeExperts", "64x8x8x3x2", 3.0, 5.0, ("rank and place",))
    (found,) = route_and_place([*results, alone])
    assert (found["operator"], found["shape"], found["microseconds"]) == ("MoeExperts", "32x8x8x3x2", {"first": 4.0, "sustained": 7.0})


def test_operators_are_measured_by_name():
    assert {m.case.operator for m in benchmark.measurements(["BeamStep"])} == {"BeamStep"}
    with pytest.raises(RecipeError, match="no kernel for Gemm"):
        next(benchmark.measurements(["Gemm"]))


def test_weights_of_experts_that_no_token_chose_are_not_read():
    measurement = next(iter(moe_experts_cases("MoeExpertsFp8Row").measured()))
    inputs = [torch.empty(each.shape, dtype=DTYPES[each.dtype].torch, device="meta") for each in measurement.case.inputs]
    inputs[-3] = torch.zeros(32, 4, dtype=torch.int64)
    one = measurement.read_bytes(inputs)
    inputs[-3] = torch.arange(54).repeat(3)[:128].view(32, 4)
    assert measurement.read_bytes(inputs) - one == 53 * 3 * 1408 * (1408 + 4)  # codes and scales of gate, up and down


def test_a_library_that_cannot_is_named_with_its_reason(tmp_path, monkeypatch):
    def refuses():
        raise RuntimeError("no kernel for this")

    (result,) = measured(tmp_path, monkeypatch, refuses)["results"]
    assert result["library"] == "torch; failed: no kernel for this"
    assert result["library_microseconds"] is None


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (GateError("differs by 1", where="QuantRow"), "differs by 1"),
        (RuntimeError("CUDA error: an illegal access\nat once"), "CUDA error: an illegal access"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_kernel_that_fails_does_not_take_the_others_along(tmp_path, monkeypatch, error, problem):
    good, bad = quant_row_case(64, 256), quant_row_case(32, 256)
    measure, said = benchmark._measure, []

    def measure_good(each, *rest):
        if each.case is bad:
            raise error
        return measure(each, *rest)

    monkeypatch.setattr(benchmark, "_measure", measure_good)
    report = measured(tmp_path, monkeypatch, lambda: Sampler(9.0), bad, good, say=said.append)
    assert [each["shape"] for each in report["results"]] == [each["shape"] for each in report["environment"]["clocks"]] == ["64x256"]
    (failure,) = report["environment"]["failures"]
    assert failure == {"operator": "QuantRow", "shape": "32x256", "variant": "row scales", "problem": problem}
    assert f"QuantRow 32x256 row scales failed: {problem}" in said
    with pytest.raises(GateError, match=f"1 of 2 kernels failed, first QuantRow 32x256: {problem}"):
        benchmark.require_all(report, tmp_path / "operators.json")


def test_the_command_shows_what_was_measured_and_exits_with_2(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "bench_operators", lambda *_: REPORT)
    with pytest.raises(GateError, match=r"1 of 1 kernels failed"):
        app(["dev", "bench-operators", "--out", str(tmp_path / "operators.json")], standalone_mode=False)
    page = (tmp_path / "operators.html").read_text()
    assert "Kernels are missing" in page
    assert "QuantRow 32x256, row scales: differs by 1" in page


def test_the_documented_shapes_are_measured():
    labels = {(m.case.operator, m.case.label) for m in benchmark.measurements()}
    products = {("Fp8LinearAdd", f"16384x1408x{n}") for n in (1408, 4224, 5632)}
    rows = {("RmsNormQuantRow", "65536x1408"), ("RmsNormQuantRow", "16384x1408"), ("SwiGluQuantRow", "16384x11264")}
    attentions = {("ContextAttention", f"32x14x512x{tokens}x128") for tokens in (512, 3000)} | {("BeamSelfAttention2", "16384x1792")}
    assert products | rows | attentions <= labels


def test_a_sample_holds_whole_requests_and_the_last():
    case = context_attention_case(9, 3, heads=2, groups=1, tokens=5, head=4)
    inputs = case.tensors("cpu")
    (query, key, value, lengths), rows = parity.sampled(case, inputs), parity.spread(case, torch.arange(case.rows))
    assert rows.tolist() == [row for request in (0, 2, 4, 6, 8) for row in range(3 * request, 3 * request + 3)]
    assert torch.equal(query, inputs[0][rows])
    assert torch.equal(key[-1], inputs[1][8])
    assert (value.shape, lengths.tolist()) == ((5, 1, 5, 4), [5] * 5)
    assert (case.label, case.flops) == ("9x2x3x5x4", 4 * 9 * 2 * 3 * 5 * 4)
    assert case.tile == TileKey("context_attention", 6, (4,))


@pytest.mark.parametrize("rows", [16384, 16500, 65536])
def test_a_sample_of_many_rows_holds_every_place_of_a_tile(rows):
    case = quant_row_case(rows, 8)
    chosen = parity.spread(case, torch.arange(case.rows))
    assert {row % 128 for row in chosen.tolist()} == set(range(128))


def test_a_sample_of_rows_keeps_weights_whole():
    case = linear_add_case(1000, 8, 1000)
    (x, weight, residual), rows = parity.sampled(case, case.tensors("cpu")), parity.spread(case, torch.arange(case.rows))
    assert rows[-1] == 999
    assert (len(x), len(weight), len(residual)) == (len(rows), 1000, len(rows))


def test_without_a_gpu_there_is_a_typed_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GpuError, match="no usable GPU"):
        parity.this_capability()
