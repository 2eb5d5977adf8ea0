"""The build for the GPU in the machine, with a stand-in for TensorRT in the child process; the real one is tested on a GPU."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onerec_trt.builders import stage
from onerec_trt.builders import tensorrt as builder
from onerec_trt.builders.host_library import HostLibrary
from onerec_trt.builders.timing_cache import cache_file
from onerec_trt.core.artifacts import sha256
from onerec_trt.core.errors import BuildError, GpuError
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.records import read_record
from onerec_trt.operators.kernels import registry
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import Program
from onerec_trt.operators.launch.tiles import GemmTile
from onerec_trt.runtime.machine import Machine
from onerec_trt.runtime.plan_record import inspect_plan

from .operator_graph import STEPS, fp8_linear, operator_graph
from .stages import build, exported_folder

Make = Callable[..., onnx.ModelProto]
MakeRecipe = Callable[..., Recipe]
FAKE = Path(__file__).parent / "fake_tensorrt"
GOLDEN = Path(__file__).parents[2] / "golden"
MACHINE = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.159.03", gpu="NVIDIA H200")
PLAN = "sm90-b1-8-s2-32.plan"  # of the fixture's recipe
PROFILES = [{"batch": [1, 4, 8], "context": [1, 16, 32]}, {"batch": [1, 1, 1], "context": [64, 64, 64]}]


@pytest.fixture(autouse=True)
def _machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setattr(stage, "this_machine", lambda target: MACHINE)


@pytest.fixture
def exported(make_model: Make, tmp_path: Path) -> Path:
    return _export(tmp_path / "export", make_model())


def _export(folder: Path, model: onnx.ModelProto) -> Path:
    """The serving graph and the scoring graph, here the same."""

    def body(temporary: Path) -> dict[str, object]:
        content = model.SerializeToString()
        for name in ("model", "scoring"):
            copy = onnx.load_model_from_string(content)
            onnx.save(copy, str(temporary / f"{name}.onnx"), save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        return {}

    return exported_folder(folder, body)


def test_serving_and_scoring_plans_with_their_layers(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    record = build(recipe(target="tensorrt", profiles=PROFILES), exported, tmp_path / "plans")
    stems = ("sm90-b1-8-s2-64", "sm90-b1-8-s2-64-scoring")
    expected = {f"{stem}.{ending}" for stem in stems for ending in ("plan", "json")}
    assert set(record.wrote) == expected | {f"builder-{stem}.log" for stem in stems} | {f"layers-{stem}.json" for stem in stems}
    assert record.machine == asdict(MACHINE)
    plan, scoring = (inspect_plan(tmp_path / "plans" / f"{stem}.plan") for stem in stems)
    assert (plan.compute_capability, plan.driver, plan.gpu, plan.library_version) == ("9.0", "580.159.03", "NVIDIA H200", "10.6.0")
    assert (plan.form, plan.precision, plan.validated, plan.timing_cache) == ("serving", "fp8-static", False, None)
    assert scoring.form == "scoring"
    assert plan.profiles[1]["features"] == ((1, 64, 64), (1, 64, 64), (2, 64, 64))  # corrected
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found) == (1, 1)
    first, second = plan.layers
    assert (first.profile, first.nodes, first.in_fp8) == (0, ("layer",), True)
    assert first.inputs == second.inputs == ("FP8 [-1, -1, 16]",)  # of several profiles: dynamic
    assert (second.profile, second.nodes) == (1, first.nodes)
    assert plan.made_from["model.onnx"] == read_record(exported).wrote["model.onnx"]
    assert plan.weight_ratio is not None
    assert plan.weight_ratio > 0
    memory = plan.gpu_memory
    assert memory is not None
    inputs_and_outputs = 2 * (8 * 32 * 64 * 2 + 8 * 3 * 8)  # FP16 features and scores, int64 lengths and items, of the larger profile
    assert (memory.plan, memory.scratch, memory.tensors) == (plan.bytes, 2000, inputs_and_outputs)
    assert memory.peak == memory.plan + memory.scratch + memory.tensors


def test_a_plan_for_each_profile(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    record = build(recipe(target="tensorrt", profiles=PROFILES, plan_per_profile=True), exported, tmp_path / "plans")
    plans = sorted(name for name in record.wrote if name.endswith(".plan"))
    assert plans == [f"sm90-{ranges}{form}.plan" for ranges in ("b1-2-s64-64", "b1-8-s2-32") for form in ("-scoring", "")]
    plan = inspect_plan(tmp_path / "plans" / plans[1])
    assert len(plan.profiles) == 1
    assert plan.layers[0].inputs == ("FP8 [1, 64, 64]",)  # of one profile: at its typical shapes


def test_two_plans_of_one_name_are_refused(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    twice = [PROFILES[0], {**PROFILES[0], "batch": [1, 8, 8]}]
    with pytest.raises(BuildError, match="same ranges"):
        build(recipe(target="tensorrt", profiles=twice, plan_per_profile=True), exported, tmp_path / "plans")


def test_the_baseline_lies_beside(exported: Path, make_model: Make, recipe: MakeRecipe, tmp_path: Path) -> None:
    baseline = _export(tmp_path / "baseline", make_model(fp8=False))
    record = build(recipe(target="tensorrt", fp16_baseline=True), exported, tmp_path / "plans", baseline)
    assert {name for name in record.wrote if name.endswith(".plan")} == {
        f"sm90{middle}-b1-8-s2-32{form}.plan" for middle in ("", "-fp16") for form in ("", "-scoring")
    }
    plan = inspect_plan(tmp_path / "plans" / "sm90-fp16-b1-8-s2-32.plan")
    assert (plan.precision, plan.fp8_gemms.expected) == ("fp16", 0)
    assert plan.made_from["model.onnx"] == read_record(baseline).wrote["model.onnx"]
    assert "baseline/model.onnx" in record.read


def test_another_gpu_or_driver_builds_anew(monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    assert build(recipe(target="tensorrt"), exported, tmp_path / "plans").ran
    assert not build(recipe(target="tensorrt"), exported, tmp_path / "plans").ran
    monkeypatch.setattr(stage, "this_machine", lambda target: Machine(**{**vars(MACHINE), "driver": "590.1"}))
    assert build(recipe(target="tensorrt"), exported, tmp_path / "plans").ran


def test_layers_that_lost_fp8_refuse_the_plan_unless_the_recipe_allows_them(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "half")
    with pytest.raises(BuildError, match="1 of 1 matrix multiplications meant for FP8 do not run in FP8: layer") as caught:
        build(recipe(target="tensorrt"), exported, tmp_path / "plans")
    assert "f16f16" in caught.value.what
    assert not (tmp_path / "plans").exists()
    build(recipe(target="tensorrt", fp8_coverage=0), exported, tmp_path / "plans")
    assert inspect_plan(tmp_path / "plans" / PLAN).fp8_gemms.missing == ("layer",)


@pytest.mark.parametrize("mood", ["brief", "mute"])
def test_without_details_the_coverage_is_unknown(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path, mood: str
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", mood)
    build(recipe(target="tensorrt"), exported, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert (plan.fp8_gemms.found, plan.layers) == (None, ())


def test_the_timing_cache_grows_and_then_suffices(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    options = {"target": "tensorrt", "timing_cache": tmp_path / "cache"}
    strict = recipe(**options, strict_timing_cache=True)
    with pytest.raises(BuildError, match="no timing cache for this machine") as caught:
        build(strict, exported, tmp_path / "plans")
    assert "strict_timing_cache off" in caught.value.hint
    build(recipe(**options), exported, tmp_path / "plans")
    use = inspect_plan(tmp_path / "plans" / PLAN).timing_cache
    assert use is not None
    assert (use.sha256_before, use.strict) == (None, False)
    cache = cache_file(tmp_path / "cache", MACHINE)
    assert use.file == cache.name == "tensorrt-10.6.0-sm90-nvidia-h200-driver-580.159.03.cache"
    assert json.loads(cache.read_text()) == ["layer"]
    build(strict, exported, tmp_path / "plans")
    again = inspect_plan(tmp_path / "plans" / PLAN).timing_cache
    assert again is not None
    assert again.sha256_before == again.sha256 == use.sha256


def test_a_miss_fails_a_strict_build(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    cache = cache_file(tmp_path / "cache", MACHINE)
    cache.parent.mkdir()
    cache.write_text('["another layer"]')
    with pytest.raises(BuildError, match="cannot build the plan") as caught:
        build(recipe(target="tensorrt", timing_cache=tmp_path / "cache", strict_timing_cache=True), exported, tmp_path / "plans")
    assert "timing cache miss" in caught.value.what
    assert "strict_timing_cache off" in caught.value.hint
    assert cache.read_text() == '["another layer"]'


def test_a_miss_that_the_library_lets_pass_fails_a_strict_build_too(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "lenient")
    cache = cache_file(tmp_path / "cache", MACHINE)
    cache.parent.mkdir()
    cache.write_text('["another layer"]')
    with pytest.raises(BuildError, match="timed kernels that the timing cache lacks"):
        build(recipe(target="tensorrt", timing_cache=tmp_path / "cache", strict_timing_cache=True), exported, tmp_path / "plans")
    assert cache.read_text() == '["another layer"]'
    assert not (tmp_path / "plans").exists()


def test_a_profile_of_batch_1_takes_2(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    profiles = [{"batch": [1, 1, 1], "context": [1, 4, 8]}, {"batch": [2, 3, 4], "context": [1, 4, 8]}]
    build(recipe(target="tensorrt", profiles=profiles), exported, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / "sm90-b1-4-s2-8.plan")
    assert [[shape[0] for shape in profile["features"]] for profile in plan.profiles] == [[1, 1, 2], [2, 3, 4]]


@pytest.mark.parametrize(("content", "mood", "message"), [("damaged", "", "is damaged"), ("[]", "other-gpu", "another library or GPU")])
def test_a_cache_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path, content: str, mood: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", mood)
    cache = cache_file(tmp_path / "cache", MACHINE)
    cache.parent.mkdir()
    cache.write_text(content)
    with pytest.raises(BuildError, match=message) as caught:
        build(recipe(target="tensorrt", timing_cache=tmp_path / "cache"), exported, tmp_path / "plans")
    assert "build.timing_cache" in caught.value.hint
    assert cache.read_text() == content


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Operators exported for real, a kernel for one of them, and a host that need not be compiled."""
    exported = exported_folder(tmp_path / "operators", lambda folder: operator_graph(folder) and {})
    host = tmp_path / "host.so"
    host.write_bytes(b"a library")
    monkeypatch.setattr(builder, "host_library", lambda version: HostLibrary(host, sha256(host)))
    monkeypatch.setattr(registry, "FACTORIES", {"Fp8Linear": registry.KernelFactory(fp8_linear)})
    return exported


def test_a_plan_with_plugins_carries_them(with_kernels: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    record = build(recipe(target="tensorrt", plugins=True), with_kernels, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert plan.plugins is not None
    assert plan.plugins.host_sha256 == sha256(tmp_path / "host.so")
    assert plan.plugins.nodes == {"Fp8Linear": 2}
    assert (plan.plugins.fusions, plan.plugins.fp8_accumulation) == ({}, "fast")
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found, plan.fp8_gemms.missing) == (2, 2, ())
    assert [(layer.nodes, layer.kernel, layer.kind) for layer in plan.layers] == [((s,), "fp8_linear", "PluginV3") for s in STEPS]
    assert json.loads((tmp_path / "plans" / PLAN).read_bytes())["libraries"] == [str(tmp_path / "host.so")]
    assert not [name for name in record.wrote if "partial" in name]
    assert not list((tmp_path / "plans").glob(".partial*"))


def test_promoted_accumulation_reaches_the_kernels_and_the_record(
    monkeypatch: pytest.MonkeyPatch, with_kernels: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    seen = []

    def watched(node: Node) -> Program:
        seen.append(node.attributes["promotion"])
        return fp8_linear(node)

    monkeypatch.setattr(registry, "FACTORIES", {"Fp8Linear": registry.KernelFactory(watched)})
    build(recipe(target="tensorrt", plugins=True, fp8_accumulation="promoted"), with_kernels, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert plan.plugins is not None
    assert plan.plugins.fp8_accumulation == "promoted"
    assert set(seen) == {128}


def test_without_plugins_the_same_graph_is_built_natively(with_kernels: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    build(recipe(target="tensorrt"), with_kernels, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert plan.plugins is None
    assert [layer.nodes for layer in plan.layers] == [(f"{step}/MatMul",) for step in STEPS]


def test_beams_that_follow_a_catalogue_are_not_built_natively(
    monkeypatch: pytest.MonkeyPatch, export_beams: Callable[[str], Path], recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(builder, "build_in_child", None)  # no build begins
    exported = export_beams("catalogue")
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        build(recipe(target="tensorrt"), exported, tmp_path / "plans")
    assert "step0.beam, step1.beam, step2.beam" in caught.value.where
    with pytest.raises(BuildError, match="find semantic IDs of no item"):
        build(recipe(target="tensorrt", fp16_baseline=True), export_beams("open"), tmp_path / "plans", exported)
    assert not (tmp_path / "plans").exists()


def test_a_step_that_its_kernel_refuses_is_not_built_natively_either(
    monkeypatch: pytest.MonkeyPatch, with_kernels: Path, export_beams: Callable[[str], Path], recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "FACTORIES", {"BeamStepItems2": registry.KernelFactory(lambda node: None)})
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        build(recipe(target="tensorrt", plugins=True), export_beams("catalogue"), tmp_path / "plans")
    assert "fewer beams" in caught.value.hint
    assert "step1.beam" in caught.value.where
    assert not (tmp_path / "plans").exists()


def test_open_beams_of_the_same_model_are_built_natively(export_beams: Callable[[str], Path], recipe: MakeRecipe, tmp_path: Path) -> None:
    build(recipe(target="tensorrt"), export_beams("open"), tmp_path / "plans")
    assert inspect_plan(tmp_path / "plans" / PLAN).plugins is None


def test_a_host_that_does_not_load(monkeypatch: pytest.MonkeyPatch, with_kernels: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "no-library")
    with pytest.raises(BuildError, match="cannot load the plugin library"):
        build(recipe(target="tensorrt", plugins=True), with_kernels, tmp_path / "plans")
    assert not (tmp_path / "plans").exists()


def test_no_gpu_is_said_first(monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    def none(target: str) -> Machine:
        raise GpuError("no GPU")

    monkeypatch.setattr(stage, "this_machine", none)
    with pytest.raises(GpuError):
        build(recipe(target="tensorrt"), exported, tmp_path / "plans")
    assert not (tmp_path / "plans").exists()


@pytest.fixture
def fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_tensorrt", FAKE / "tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    return fake


def test_the_stand_in_takes_what_tensorrt_takes_and_nothing_else(fake: ModuleType, stands_for: Callable[..., None]) -> None:
    classes = [kind for kind in vars(fake).values() if isinstance(kind, type) and kind.__module__ == "fake_tensorrt"]
    kinds = [kind for kind in classes if not issubclass(kind, IntEnum) and not kind.__name__.startswith("_")]
    assert len(kinds) > 10
    for kind in kinds:
        stands_for(kind, kind.__name__)


@pytest.mark.parametrize("version", ["10.6", "11.4"])
def test_the_enumerations_of_the_stand_in_are_tensorrts(fake: ModuleType, version: str) -> None:
    api = json.loads((GOLDEN / f"tensorrt-{version}.json").read_text())["classes"]
    for name, kind in vars(fake).items():
        if isinstance(kind, type) and issubclass(kind, IntEnum) and kind is not IntEnum and not name.startswith("_"):
            assert set(kind.__members__) <= set(api[name]), name


@pytest.mark.parametrize(("multiprocessors", "programs"), [(0, 132), (78, 78), (148, 132)])
def test_kernels_run_no_more_programs_than_the_gpu_at_a_time(multiprocessors: int, programs: int) -> None:
    """0: not known."""
    machine = replace(MACHINE, multiprocessors=multiprocessors)
    kernels = builder._kernels(machine)
    tile = kernels.tiles.tile("9.0", "fp8_linear", (1408, 5632), 16384)
    assert isinstance(tile, GemmTile)
    assert tile.ctas == programs
