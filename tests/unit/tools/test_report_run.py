"""A run is read back whole, or refused with the stage to run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.core.sources import Sources
from onerec_trt.export import stage as export_stage
from onerec_trt.tools.report import load_run, require_current
from onerec_trt.tools.report.content import Remark, remarks
from onerec_trt.validation.gates import gate

from .report_runs import load

MakeRun = Callable[..., Path]


def test_a_run_is_read_back(make_run: MakeRun) -> None:
    run = load(make_run("mine", precision="fp8-paper"))
    assert (run.name, run.precision) == ("mine", "fp8-paper")
    assert list(run.plans) == ["sm89.plan", "sm120.plan"]
    assert run.validation.beams.hit == 0.4375
    assert run.description.weight_bytes == 5120
    assert list(run.records) == ["calibrated", "exported", "plans", "validated"]


def test_a_validation_on_the_gpu_belongs_to_the_run(make_run: MakeRun) -> None:
    good, bad = gate("overlap@10", "mine", 0.95, ">=", 0.9), gate("overlap@10", "mine", 0.5, ">=", 0.9)
    seen = load(make_run("mine", on_gpu=[good]))
    assert all(plan.validated for plan in seen.plans.values())
    assert seen.engines == ["onnxruntime", "tensorrt"]
    assert seen.gates[-1].name == "tensorrt: overlap@10"
    failed = load(make_run("mine", on_gpu=[bad]))
    assert not any(plan.validated for plan in failed.plans.values())
    assert [gate.name for gate in failed.gates if not gate.passed] == ["tensorrt: overlap@10"]
    assert list(failed.records)[-1] == "validated-tensorrt"


def test_a_validation_of_other_artifacts_says_nothing(make_run: MakeRun) -> None:
    root, other = (make_run("mine", on_gpu=[gate("overlap@10", "mine", 0.95, ">=", 0.9)], warnings=w) for w in ((), ("a warning",)))
    shutil.rmtree(root / "validated-tensorrt")
    shutil.copytree(other / "validated-tensorrt", root / "validated-tensorrt")
    assert load(root).on_gpu is None


@pytest.mark.parametrize(
    ("folder", "stage"), [("calibrated", "calibrate"), ("exported", "export"), ("plans", "build"), ("validated", "validate")]
)
def test_a_missing_stage_is_named(make_run: MakeRun, folder: str, stage: str) -> None:
    root = make_run("mine")
    shutil.rmtree(root / folder)
    with pytest.raises(ArtifactError, match=f"the stage '{stage}' has not run") as caught:
        load(root)
    assert f"onerec-trt {stage}" in caught.value.hint
    assert caught.value.where == str(root / folder)


def test_a_changed_file_is_refused(make_run: MakeRun) -> None:
    root = make_run("mine")
    (root / "validated" / "validation.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not match its record"):
        load(root)


def test_plans_of_an_older_export_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(ArtifactError, match="'build' were made from other artifacts") as caught:
        load(make_run("mine", change_exported=True))
    assert "onerec-trt build" in caught.value.hint


def test_a_folder_of_another_stage_is_refused(make_run: MakeRun) -> None:
    root = make_run("mine")
    shutil.rmtree(root / "plans")
    shutil.copytree(root / "exported", root / "plans")
    with pytest.raises(ArtifactError, match="the record is of the stage 'export', not of 'build'"):
        load(root)


def test_a_run_of_the_recipe_as_it_is_is_not_outdated(make_run: MakeRun) -> None:
    assert load(make_run("mine")).outdated == ()


def test_what_has_changed_since_the_run_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_run("mine")
    recipe = load_recipe(root.with_suffix(".yaml"))
    changed = recipe.model_copy(
        update={
            "calibration": recipe.calibration.model_copy(update={"max_requests": 7}),
            "validation": recipe.validation.model_copy(update={"top_k": 3}),
        }
    )
    monkeypatch.setattr(export_stage, "SOURCES", Sources(("core",)))
    run = load_run(changed)
    told = [("calibrated", "max requests"), ("exported", "version of its code"), ("validated", "top k")]
    assert [(folder, str(difference)) for folder, difference in run.outdated] == told
    assert remarks([run])[-1] == Remark("mine", "recipe", "validated/", "not what the recipe makes now: another top k")


def test_a_run_of_another_recipe_is_no_report_of_this_one(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_run("mine")
    recipe = load_recipe(root.with_suffix(".yaml"))
    require_current([load_run(recipe)])
    with pytest.raises(ArtifactError, match=r"'mine' are not what it makes now: calibrated/ was made from another precision"):
        require_current([load_run(recipe.model_copy(update={"precision": "fp8-paper"}))])
    monkeypatch.setattr(export_stage, "SOURCES", Sources(("core",)))
    require_current([load_run(recipe)])  # other code is a remark


def test_a_run_of_other_requests_is_no_report_of_these(make_run: MakeRun) -> None:
    root = make_run("mine")
    recipe = load_recipe(root.with_suffix(".yaml"))
    recipe.requests.write_text("others")
    with pytest.raises(ArtifactError, match="was made from another"):
        require_current([load_run(recipe)])
    recipe.requests.unlink()
    require_current([load_run(recipe)])  # they lie on another machine
