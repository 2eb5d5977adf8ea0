"""A reference through the pipeline: its recipes, and the table that grows with each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.stages import run_stage
from onerec_trt.fidelity.recipes import ValidatedRecipe
from onerec_trt.fidelity.references import REFERENCES
from onerec_trt.tools.fidelity import reference_recipes as module
from onerec_trt.tools.fidelity.reference_recipes import (
    PRECISIONS,
    answer_in_fp32,
    copied_for_another_build,
    engine_tables,
    reference_recipes,
)
from onerec_trt.tools.pipeline import folders_of, reference_job_of, stages_of, whole_run
from onerec_trt.validation.fp32_reference import reference_stage

FOREVER = float("inf")


def test_a_recipe_for_each_precision_takes_the_longest_context(tmp_path: Path) -> None:
    reference = REFERENCES["0.1B-moe"]
    recipes = reference_recipes("0.1B-moe", 1, tmp_path, reference, 1024, 32)
    assert [recipe.precision for recipe in recipes] == list(PRECISIONS)
    assert {recipe.max_context for recipe in recipes} == {5 + 40 + 243}
    assert {recipe.export.beam for recipe in recipes} == {reference.beam}
    assert {(recipe.validation.max_requests, recipe.build.target, recipe.build.plugins) for recipe in recipes} == {(1024, "tensorrt", True)}
    assert {whole_run(recipe) for recipe in recipes} == {("calibrate", "export", "build", "validate-tensorrt")}
    assert all((tmp_path / "0.1B-moe-seed1" / "recipes" / f"{precision}.yaml").is_file() for precision in PRECISIONS)


def test_the_table_grows_with_each_exported_graph(finished_recipe: Callable[[str], Recipe]) -> None:
    recipes = [finished_recipe(precision) for precision in ("fp16", "fp8-row")]
    tables = list(engine_tables(recipes, "onnxruntime", FOREVER))
    assert [[row.system for row in table.rows] for table in tables] == [["fp16"], ["fp16", "fp8-row"]]
    assert tables[-1].engine == "onnxruntime"
    assert tables[-1].rows[1].cell("score error, nat").value > tables[-1].rows[0].cell("score error, nat").value


def test_what_fp32_answers_is_there_for_whoever_validates_first(world: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row").model_copy(update={"output": world / "answers"})
    answer_in_fp32([recipe])
    assert not run_stage(reference_stage(reference_job_of(recipe), folders_of(recipe).reference)).ran


def test_no_recipe_begins_when_the_time_is_over(finished_recipe: Callable[[str], Recipe]) -> None:
    assert list(engine_tables([finished_recipe("fp16")], "onnxruntime", 0.0)) == []


def test_plans_are_built_once_more_from_the_same_graph(
    world: Path, finished_recipe: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [finished_recipe(precision).model_copy(update={"output": world / "out"}) for precision in ("fp16", "fp8-row")]
    monkeypatch.setattr(module, "REPEATED", "fp8-row")
    ran: list[tuple[Path, tuple[str, ...]]] = []
    monkeypatch.setattr(module, "run_stages", lambda recipe, names: ran.append((recipe.output, tuple(names))) or ())

    def table(recipes: list[ValidatedRecipe]) -> tuple[int, int]:
        return len(recipes), sum(recipe.rebuilt is not None for recipe in recipes)

    monkeypatch.setattr(module, "comparison_of", lambda *_: SimpleNamespace(table=table))
    assert list(engine_tables(recipes, "tensorrt", FOREVER)) == [(1, 0), (2, 0), (2, 1)]
    assert ran[-1] == (world / "out" / "again", ("build", "validate-tensorrt"))
    assert [names for _, names in ran[:-1]] == [("calibrate", "export", "build", "validate-tensorrt")] * 2


def test_what_is_built_once_more_needs_no_other_stage(world: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row").model_copy(update={"output": world / "out"})
    again = copied_for_another_build(recipe)
    stages = {stage.name: stage for stage in stages_of(again)}
    assert not any(run_stage(stages[name]).ran for name in ("calibrate", "export"))
    assert (
        folders_of(again).reference.joinpath("record.json").read_bytes()
        == folders_of(recipe).reference.joinpath("record.json").read_bytes()
    )
