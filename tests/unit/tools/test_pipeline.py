"""Stages run in order, and only those that depend on what changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError, BuildError, RequestError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.core.records import Record, read_record
from onerec_trt.core.stages import Stage, declare, differences, run_stage
from onerec_trt.runtime.plan_record import inspect_plan
from onerec_trt.tools import pipeline
from onerec_trt.tools.pipeline import STAGES, folders_of, plans, run_stages, stages_of, summarize, validations, whole_run, write_summary
from onerec_trt.validation.gates import gate
from onerec_trt.validation.scoring_parity import ErrorRatios, ScoringErrors

MakeRecipe = Callable[..., Path]
NOT_KNOWN = ErrorRatios(mean=math.nan, mean_interval=(math.nan, math.nan), typical=math.nan, typical_interval=(math.nan, math.nan))


def ran(path: Path) -> list[str]:
    """The stages that had to do something."""
    results = list(run_stages(load_recipe(path)))
    assert [result.stage for result in results] == list(STAGES)
    return [result.stage for result in results if result.record.ran]


def test_nothing_runs_when_nothing_changed(world: Path, make_recipe: MakeRecipe) -> None:
    assert ran(make_recipe(world, "fp16")) == []


def test_another_threshold_validates_again(world: Path, make_recipe: MakeRecipe) -> None:
    assert ran(make_recipe(world, "fp16", validate={"overlap": 0.93})) == ["validate"]


def test_another_profile_builds_again(world: Path, make_recipe: MakeRecipe) -> None:
    profiles = [{"batch": [1, 2, 4], "context": [2, 8, 16]}]
    path = make_recipe(world, "fp16", build={"profiles": profiles})
    assert ran(path) == ["build"]
    record = inspect_plan(folders_of(load_recipe(path)).plans / "sm89-b1-4-s2-16.plan")
    assert record.profiles[0]["lengths"] == ((1, 3), (2, 3), (4, 3))


def test_calibration_that_gives_the_same_weights_is_enough_to_start_over(
    world: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything hangs on the record of calibration; the later stages are only asked here, they would take long."""
    monkeypatch.setattr(pipeline, "run_stage", lambda stage: run_stage(stage) if stage.name == "calibrate" else stage)
    recipe = load_recipe(make_recipe(world, "fp16", calibration={"batch_size": 7}))
    results = list(run_stages(recipe))
    assert results[0].record.ran
    assert [result.stage for result in results] == list(STAGES)
    exported = stages_of(recipe)[1]
    found = differences(read_record(exported.folder), declare(exported))
    assert [str(difference) for difference in found] == ["quantized checkpoint"]


def test_a_stage_that_fails_stops_those_after_it(world: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_from_export_on(stage: Stage) -> Record:
        if stage.name != "calibrate":
            raise ArtifactError("the disk is full")
        return run_stage(stage)

    monkeypatch.setattr(pipeline, "run_stage", fail_from_export_on)
    done = []
    with pytest.raises(ArtifactError, match="disk is full"):
        done.extend(iter(run_stages(load_recipe(make_recipe(world, "fp16")))))
    assert [result.stage for result in done] == ["calibrate"]


def test_the_whole_pipeline_is_declared_before_anything_is_there(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(tmp_path, "fp8-row", build={"target": "tensorrt", "fp16_baseline": True}))
    stages = stages_of(recipe)
    assert [stage.name for stage in stages] == ["calibrate", "export", "build", "validate", "validate-tensorrt"]
    assert len({stage.folder for stage in stages}) == len(stages)
    assert [needed.name for stage in stages for needed in stage.needs] == ["calibrate", "export", "reference", "reference"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("target", "last"), [("tensorrt-rtx", "validate"), ("tensorrt", "validate-tensorrt")])
def test_a_whole_run_ends_where_its_plans_can_run(make_recipe: MakeRecipe, tmp_path: Path, target: str, last: str) -> None:
    recipe = load_recipe(make_recipe(tmp_path, "fp8-row", build={"target": target}))
    names = whole_run(recipe)
    assert names[-1] == last
    assert set(names) <= {stage.name for stage in stages_of(recipe)}


def test_folders_are_apart_by_recipe_and_share_the_reference(world: Path) -> None:
    one, two = (folders_of(load_recipe(world / f"{name}.yaml")) for name in ("fp16", "fp8-row"))
    own = {"root", "calibrated", "exported", "plans", "validated"}
    assert all(getattr(one, name) != getattr(two, name) for name in own)
    assert one.reference == two.reference == world / "out" / "reference"


def test_the_summary_holds_recipes_side_by_side(world: Path) -> None:
    recipes = [load_recipe(world / f"{name}.yaml") for name in ("fp16", "fp8-row")]
    extra = gate("demo model hit@10, not too hard", "fp32", 0.5, ">=", 0.2)
    summary = summarize(recipes, [extra])
    assert summary["gates"][0] == {"name": extra.name, "recipe": "fp32", "value": 0.5, "threshold": 0.2, "passed": True}
    assert {entry["recipe"] for entry in summary["gates"]} == {"fp32", "fp16", "fp8-row"}
    assert len(summary["gates"]) == 1 + sum(len(result.gates) for result in validations(recipes))
    assert list(summary["recipes"]) == ["fp16", "fp8-row"]
    assert [entry["path"] for entry in summary["plans"]] == ["fp16/plans/sm89-b1-16-s2-16.plan", "fp8-row/plans/sm89-b1-16-s2-16.plan"]
    for entry in summary["plans"]:
        assert (world / "out" / entry["path"]).is_file()


def test_errors_that_are_not_finite_are_null_in_the_summary(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe(world / "fp16.yaml")
    broken = ScoringErrors(engine=math.nan, quantized=0.0, engine_kl=math.nan, quantized_kl=0.0, ratios=NOT_KNOWN, kl_ratios=NOT_KNOWN)
    results = [result.model_copy(update={"scoring": broken}) for result in validations([recipe])]
    monkeypatch.setattr(pipeline, "validations", lambda _: results)
    write_summary(tmp_path / "summary.json", summarize([recipe]))
    figures = json.loads((tmp_path / "summary.json").read_text())["recipes"]["fp16"]
    assert (figures["scoring_error_vs_fp32"], figures["scoring_error_ratio"]) == (None, None)


def test_a_changed_plan_is_not_summarized(world: Path) -> None:
    recipe = load_recipe(world / "fp16.yaml")
    plan = folders_of(recipe).plans / "sm89-b1-16-s2-16.plan"
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="its record says"):
        plans([recipe])


def test_a_recipe_without_plans_is_named(world: Path) -> None:
    recipe = load_recipe(world / "fp16.yaml")
    (folders_of(recipe).plans / "sm89-b1-16-s2-16.plan").unlink()
    with pytest.raises(ArtifactError, match="there are no plans") as caught:
        plans([recipe])
    assert caught.value.where == str(folders_of(recipe).plans)


def test_held_out_requests_that_are_not_there_are_said_before_hours_of_work(world: Path, make_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(make_recipe(world, "fp16", name="new", heldout="nowhere.parquet"))
    with pytest.raises(RequestError, match="request file not found") as caught:
        next(run_stages(recipe))
    assert caught.value.where == str(world / "nowhere.parquet")
    assert not folders_of(recipe).root.exists()


def test_a_build_that_would_find_wrong_items_is_refused_before_hours_of_work(world: Path, make_recipe: Callable[..., Path]) -> None:
    changes = {"catalogue": "catalogue.parquet", "export": {"items": "catalogue"}, "build": {"target": "tensorrt"}}
    recipe = load_recipe(make_recipe(world, "fp16", name="new", **changes))
    for names in (whole_run(recipe), ["build"]):
        with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
            next(run_stages(recipe, names))
        assert "build.plugins: true" in caught.value.hint
    assert not folders_of(recipe).root.exists()
