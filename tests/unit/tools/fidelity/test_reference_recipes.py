"""A reference through the pipeline: its recipes, and the table that grows with each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.stages import run_stage
from onerec_trt.fidelity.recipes import ValidatedRecipe
from onerec_trt.fidelity.references import REFERENCES
from onerec_trt.fidelity.table import FidelityTable
from onerec_trt.tools.fidelity import reference_recipes as module
from onerec_trt.tools.fidelity.reference_recipes import (
    PRECISIONS,
    EngineTables,
    answer_in_fp32,
    copy_for_another_build,
    for_another_build,
    reference_recipes,
)
from onerec_trt.tools.pipeline import folders_of, reference_job_of, stages_of, whole_run
from onerec_trt.validation.backends import EngineName
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


def tables_of(recipes: list[Recipe], engine: EngineName = "onnxruntime", deadline: float = FOREVER) -> Iterator[FidelityTable]:
    return EngineTables(recipes, engine, lambda _: None).run(deadline)


def systems(tables: Iterable[FidelityTable]) -> list[list[str]]:
    return [[row.system for row in table.rows] for table in tables]


def unvalidated(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a copy of all that lies in its folder and of FP32's answers, but no validation."""
    copy = recipe.model_copy(update={"output": folder})
    shutil.copytree(folders_of(recipe).reference, folders_of(copy).reference, dirs_exist_ok=True)
    shutil.copytree(folders_of(recipe).root, folders_of(copy).root)
    shutil.rmtree(folders_of(copy).validated)
    return copy


def validated(recipe: Recipe, folder: Path) -> Recipe:
    copy = unvalidated(recipe, folder)
    shutil.copytree(folders_of(recipe).validated, folders_of(copy).validated)
    return copy


def test_the_table_grows_with_each_exported_graph(finished_recipe: Callable[[str], Recipe], tmp_path: Path) -> None:
    recipes = [validated(finished_recipe("fp16"), tmp_path), unvalidated(finished_recipe("fp8-row"), tmp_path)]
    tables = list(tables_of(recipes))
    assert systems(tables) == [["fp16"], ["fp16", "fp8-row"]]
    assert tables[-1].engine == "onnxruntime"
    assert tables[-1].rows[1].cell("score error, nat").value > tables[-1].rows[0].cell("score error, nat").value
    assert systems(tables_of(recipes)) == [["fp16", "fp8-row"]]


def test_when_the_time_is_over_no_recipe_begins_and_those_validated_already_have_rows(
    finished_recipe: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("a recipe was begun"))
    recipes = [unvalidated(finished_recipe("fp16"), tmp_path), validated(finished_recipe("fp8-row"), tmp_path)]
    assert systems(tables_of(recipes, deadline=0.0)) == [["fp8-row"]]


def test_a_recipe_that_fails_stops_no_other(
    finished_recipe: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [unvalidated(finished_recipe(precision), tmp_path) for precision in ("fp16", "fp8-row")]

    def run(recipe: Recipe, _names: Sequence[str]) -> Sequence[object]:
        if recipe.name == "fp16":
            raise BuildError("it cannot be built")
        shutil.copytree(folders_of(finished_recipe(recipe.name)).validated, folders_of(recipe).validated)
        return ()

    monkeypatch.setattr(module, "run_stages", run)
    said: list[str] = []
    tables = EngineTables(recipes, "onnxruntime", said.append).run(FOREVER)
    assert [row.system for row in next(tables).rows] == ["fp8-row"]
    with pytest.raises(BuildError, match="it cannot be built"):
        next(tables)
    assert said == ["fp16 failed: it cannot be built"]


def test_what_fp32_answers_is_there_for_whoever_validates_first(world: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row").model_copy(update={"output": world / "answers"})
    answer_in_fp32([recipe])
    assert not run_stage(reference_stage(reference_job_of(recipe), folders_of(recipe).reference)).ran


def test_plans_are_built_once_more_from_the_same_graph(
    world: Path, finished_recipe: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [finished_recipe(precision).model_copy(update={"output": world / "out"}) for precision in ("fp16", "fp8-row")]
    monkeypatch.setattr(module, "REPEATED", "fp8-row")
    ran: list[tuple[Path, tuple[str, ...]]] = []
    finished: set[Path] = set()

    def run(recipe: Recipe, names: Sequence[str]) -> Sequence[object]:
        ran.append((recipe.output, tuple(names)))
        finished.add(folders_of(recipe).validated_tensorrt)
        return ()

    monkeypatch.setattr(module, "run_stages", run)

    def table(recipes: list[ValidatedRecipe]) -> tuple[int, int]:
        return len(recipes), sum(recipe.rebuilt is not None for recipe in recipes)

    monkeypatch.setattr(module, "comparison_of", lambda *_: SimpleNamespace(table=table))
    monkeypatch.setattr(module, "is_current", lambda stage: stage.folder in finished)
    assert list(tables_of(recipes, "tensorrt")) == [(1, 0), (2, 0), (2, 1)]
    assert ran[-1] == (world / "out" / "again", ("build", "validate-tensorrt"))
    assert [names for _, names in ran[:-1]] == [("calibrate", "export", "build", "validate-tensorrt")] * 2


def test_what_is_built_once_more_needs_no_other_stage(world: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row").model_copy(update={"output": world / "out"})
    copy_for_another_build(recipe)
    again = for_another_build(recipe)
    stages = {stage.name: stage for stage in stages_of(again)}
    assert not any(run_stage(stages[name]).ran for name in ("calibrate", "export"))
    assert (
        folders_of(again).reference.joinpath("record.json").read_bytes()
        == folders_of(recipe).reference.joinpath("record.json").read_bytes()
    )
