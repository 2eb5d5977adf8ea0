"""The stage: plans for two GPU generations on a machine without any, resumed by hash, or nothing at all."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onerec_trt.builders import child, rtx
from onerec_trt.builders.functions import io_of
from onerec_trt.builders.program_text import ProgramFacts
from onerec_trt.core.errors import ArtifactError, BuildError, MissingExtraError
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.records import read_record
from onerec_trt.runtime.plan_record import inspect_plan
from onerec_trt.runtime.verdict import inspect_with_verdict

from .stages import build

Make = Callable[..., onnx.ModelProto]
Export = Callable[[onnx.ModelProto], Path]
MakeRecipe = Callable[..., Recipe]
PLAN = "sm89-b1-8-s2-32.plan"  # of the fixture's recipe


@pytest.fixture
def exported(make_model: Make, export: Export) -> Path:
    return export(make_model())


def _left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.parts[-2] != "export")


def test_two_generations_from_one_file(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    profiles = [{"batch": [1, 4, 8], "context": [1, 16, 32]}, {"batch": [1, 1, 1], "context": [64, 64, 64]}]
    record = build(recipe(compute_capabilities=["8.9", "12.0"], profiles=profiles), exported, tmp_path / "plans")
    stems = [f"{generation}-b1-8-s2-64" for generation in ("sm89", "sm120")]
    expected = {f"{stem}.{ending}" for stem in stems for ending in ("plan", "json")} | {f"builder-{stem}.log" for stem in stems}
    assert set(record.wrote) == expected
    assert set(record.read) == {"model.onnx", "weights.data", "record.json"}
    assert read_record(tmp_path / "plans").facts == record.facts
    for capability, stem in zip(("8.9", "12.0"), stems, strict=True):
        plan = inspect_plan(tmp_path / "plans" / f"{stem}.plan")
        assert (plan.compute_capability, plan.driver, plan.validated) == (capability, None, False)
        assert inspect_with_verdict(tmp_path / "plans" / f"{stem}.plan").reason.startswith("built without its GPU")
        assert (plan.fp8_gemms.expected, plan.fp8_gemms.found, plan.fp8_gemms.missing) == (1, 1, ())
        assert plan.weight_bytes.plan is not None
        assert plan.weight_bytes.plan["fp8_e4m3"] == 64 * 64
        assert plan.profiles[1]["features"] == ((1, 64, 64),) * 3
        assert plan.io == io_of(onnx.load(exported / "model.onnx"), exported)
        assert record.facts[plan.plan] == plan.model_dump(mode="json")
        assert plan.builder_warnings == ()
        assert plan.precision == recipe().precision
        assert plan.made_from == {name: record.read[name] for name in ("model.onnx", "record.json")}


def test_an_fp16_graph_has_no_fp8(
    make_model: Make, export: Export, recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(recipe(plugins=True), export(make_model(fp8=False)), tmp_path / "plans")
    assert "build.plugins is of the target tensorrt alone" in caplog.text
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found) == (0, 0)
    assert plan.weight_bytes.plan is not None
    assert "fp8_e4m3" not in plan.weight_bytes.plan


def test_what_is_unchanged_is_not_built_again(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    first = build(recipe(), exported, tmp_path / "plans")
    written = (tmp_path / "plans" / PLAN).stat().st_mtime_ns
    again = build(recipe(), exported, tmp_path / "plans")
    assert (first.ran, again.ran) == (True, False)
    assert again.wrote == first.wrote
    assert (tmp_path / "plans" / PLAN).stat().st_mtime_ns == written
    changed = build(recipe(profiles=[{"batch": [1, 1, 1], "context": [2, 16, 32]}]), exported, tmp_path / "plans")
    assert changed.wrote["sm89-b1-1-s2-32.plan"] != first.wrote[PLAN]


def test_a_graph_that_is_not_its_record_s_is_refused(exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    (exported / "weights.data").write_bytes((exported / "weights.data").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="does not match its record"):
        build(recipe(), exported, tmp_path / "plans")
    assert _left(tmp_path) == []


def test_an_unsupported_generation_stops_before_any_build(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(child, "WORKER", ("/nonexistent/worker",))
    with pytest.raises(BuildError, match=r"cannot build for compute capability 9\.0"):
        build(recipe(compute_capabilities=["8.9", "9.0"]), exported, tmp_path / "plans")
    assert _left(tmp_path) == []


def test_an_unknown_operator_leaves_nothing(make_model: Make, export: Export, recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="onerec::Mystery"):
        build(recipe(), export(make_model("Mystery")), tmp_path / "plans")
    assert _left(tmp_path) == []


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # as if it were not installed
    with pytest.raises(MissingExtraError) as caught:
        build(recipe(), exported, tmp_path / "plans")
    assert "onerec-trt[rtx]" in caught.value.hint
    assert _left(tmp_path) == []


def test_one_failing_plan_leaves_none_and_the_earlier_ones_untouched(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    build(recipe(), exported, tmp_path / "plans")
    before = _left(tmp_path)
    killer = "import json, os, sys; job = sys.stdin.readline(); open(json.loads(job)['plan'], 'w').write('half'); os.kill(os.getpid(), 9)"
    real, started = rtx.build_in_child, []

    def second_dies(*arguments: object) -> object:
        started.append(arguments)
        if len(started) == 2:
            monkeypatch.setattr(child, "WORKER", (sys.executable, "-c", killer))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rtx, "build_in_child", second_dies)
    with pytest.raises(BuildError, match="SIGKILL"):
        build(recipe(compute_capabilities=["8.9", "12.0"]), exported, tmp_path / "plans")
    assert len(started) == 2
    assert _left(tmp_path) == before
    assert not inspect_plan(tmp_path / "plans" / PLAN).validated


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rtx, "write_json", full)
    with pytest.raises(ArtifactError, match="disk is full"):
        build(recipe(), exported, tmp_path / "plans")
    assert _left(tmp_path) == []


def test_ctrl_c_leaves_nothing(monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rtx, "read_program", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(), exported, tmp_path / "plans")
    assert _left(tmp_path) == []


def test_a_layer_that_lost_its_fp8_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(rtx, "read_program", lambda plan: ProgramFacts(frozenset({"another"}), {"half": 8192}))
    with pytest.raises(BuildError, match="1 of 1 matrix multiplications meant for FP8 do not run in FP8: layer"):
        build(recipe(), exported, tmp_path / "plans")
    assert _left(tmp_path) == []


def test_an_unreadable_program_is_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch, exported: Path, recipe: MakeRecipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(rtx, "read_program", lambda plan: None)
    build(recipe(), exported, tmp_path / "plans")
    plan = inspect_plan(tmp_path / "plans" / PLAN)
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found) == (1, None)
    assert "could be read" in plan.fp8_gemms.how
