"""`onerec-trt build`: options given on the command line, the folder of each target, the FP16 baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.builders import stage as build_stage
from onerec_trt.core.errors import GpuError, RecipeError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.core.records import RECORD_NAME
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Stage, run_stage
from onerec_trt.tools import cli, commands, pipeline
from typer.testing import CliRunner

MakeRecipe = Callable[..., Path]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes that a build was asked for, which does nothing else."""
    recipes: list[Recipe] = []

    def run_stages(recipe: Recipe, stages: Sequence[str]) -> Iterator[Any]:
        assert list(stages) == ["build"]
        recipes.append(recipe)
        return iter(())

    monkeypatch.setattr(commands.pipeline, "run_stages", run_stages)
    return recipes


def _call(path: Path, *options: str) -> None:
    CliRunner().invoke(cli.app, ["build", str(path), *options], catch_exceptions=False)


def test_the_recipe_is_taken_as_it_is(make_recipe: MakeRecipe, built: list[Recipe], tmp_path: Path) -> None:
    path = make_recipe(tmp_path, "fp8-row")
    _call(path)
    assert built == [load_recipe(path)]


def test_options_replace_the_recipe_s(make_recipe: MakeRecipe, built: list[Recipe], tmp_path: Path) -> None:
    path = make_recipe(tmp_path, "fp8-row", build={"timing_cache": "cache"})
    _call(path, "--target", "tensorrt", "--strict")
    (recipe,) = built
    assert (recipe.build.target, recipe.build.strict_timing_cache) == ("tensorrt", True)
    assert recipe.build.timing_cache == tmp_path / "cache"
    assert recipe.build.profiles == load_recipe(path).build.profiles


def test_strict_without_a_cache_is_refused(make_recipe: MakeRecipe, built: list[Recipe], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs timing_cache"):
        _call(make_recipe(tmp_path, "fp8-row"), "--strict")
    assert built == []


def test_each_target_has_its_folder(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for target, name in (("tensorrt-rtx", "plans"), ("tensorrt", "plans-tensorrt")):
        recipe = load_recipe(make_recipe(tmp_path, "fp8-row", build={"target": target}))
        assert pipeline.folders_of(recipe).plans.name == name


def _build(recipe: Recipe) -> Stage:
    (stage,) = (stage for stage in pipeline.stages_of(recipe) if stage.name == "build")
    return stage


def test_the_baseline_is_calibrated_and_exported_in_fp16_before_the_build(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    changes = {"build": {"target": "tensorrt", "fp16_baseline": True}, "calibration": {"saved_state": "state.pt"}}
    recipe = load_recipe(make_recipe(tmp_path, "fp8-row", **changes))
    calibrated, exported = _build(recipe).needs
    baseline = pipeline.folders_of(recipe).baseline
    assert (calibrated.name, calibrated.folder, calibrated.options["precision"]) == ("calibrate", baseline / "calibrated", "fp16")
    assert set(calibrated.inputs()) == {"checkpoint", "requests"}
    assert (exported.name, exported.folder, exported.options["beam"]) == ("export", baseline / "exported", list(recipe.export.beam))
    assert exported.inputs() == {"quantized_checkpoint": calibrated.folder}


def test_the_build_reads_the_baseline(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(tmp_path, "fp8-row", build={"target": "tensorrt", "fp16_baseline": True}))
    places = pipeline.folders_of(recipe)
    for folder in (places.exported, places.baseline / "exported"):
        run_stage(Stage(name="export", folder=folder, sources=Sources(()), tools=(), options={}, body=lambda _: {}))
    assert set(_build(recipe).inputs().values()) == {places.exported / RECORD_NAME, places.baseline / "exported" / RECORD_NAME}


@pytest.mark.parametrize("build", [{"target": "tensorrt"}, {"fp16_baseline": True}])
def test_there_is_no_baseline_unless_it_is_asked_for(make_recipe: MakeRecipe, tmp_path: Path, build: dict[str, Any]) -> None:
    assert _build(load_recipe(make_recipe(tmp_path, "fp8-row", build=build))).needs == ()


def test_a_machine_without_gpu_does_no_work_for_a_baseline(
    monkeypatch: pytest.MonkeyPatch, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def none(target: str) -> None:
        raise GpuError("no GPU")

    monkeypatch.setattr(build_stage, "this_machine", none)
    recipe = load_recipe(make_recipe(tmp_path, "fp8-row", build={"target": "tensorrt", "fp16_baseline": True}))
    with pytest.raises(GpuError):
        list(pipeline.run_stages(recipe, ["build"]))
    assert not recipe.output.exists()
