"""What each command of the command line does. Separate from the words, so that help does not wait for PyTorch to load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console

from ..core.artifacts import write_json
from ..core.errors import ArtifactError, RecipeError
from ..core.precision import PRECISIONS
from ..core.recipe import PrecisionName, Recipe, load_recipe, with_build_options
from ..models.catalogue import build_catalogue
from ..validation.backends import EngineName
from ..validation.gates import Gate, require
from ..validation.validate import VALIDATE
from . import demo as demo_run
from . import export_trial as trial
from . import inspection, pipeline, signing
from . import recommend as recommendation
from .fidelity.command import compare
from .outputs import require_own_index, require_own_page
from .pipeline import StageResult
from .report import load_run, require_current, write_report
from .tables import gates_table, plans_table, recipes_table, stage_line, stage_warnings
from .terminal import print_results


def demo(out: Path, as_json: bool) -> None:
    _show(demo_run.prepare(out))
    recipes = demo_run.recipes(out)
    _show(demo_run.run(out, recipes))
    compare(recipes, out / demo_run.FIDELITY_FILE, "onnxruntime")
    gates, figures = demo_run.model_gates(recipes[0])
    _finish(recipes, out, "onerec-trt demo", as_json, figures=figures, extra_gates=gates)


def run(recipe_file: Path, as_json: bool) -> None:
    recipe = load_recipe(recipe_file)
    pipeline.require_own_summary(pipeline.folders_of(recipe).root)
    _show(pipeline.run_stages(recipe, pipeline.whole_run(recipe)))
    _finish([recipe], pipeline.folders_of(recipe).root, f"onerec-trt run {recipe.name}", as_json)


def build(recipe_file: Path, as_json: bool, **options: Any) -> None:
    """`options` take the place of the recipe's build options."""
    recipe = with_build_options(load_recipe(recipe_file), **options)
    _one_stage(recipe, "build", as_json)


def one_stage(recipe_file: Path, stage: str, as_json: bool) -> None:
    _one_stage(load_recipe(recipe_file), stage, as_json)


def _one_stage(recipe: Recipe, stage: str, as_json: bool) -> None:
    for result in _shown(pipeline.run_stages(recipe, [stage])):
        if as_json:
            _print(result.record.model_dump(mode="json"), [], as_json)


def validate(recipe_file: Path, as_json: bool, engine: EngineName = "onnxruntime") -> None:
    recipe = load_recipe(recipe_file)
    _show(pipeline.run_stages(recipe, [VALIDATE[engine]]))
    (result,) = pipeline.validations([recipe], engine)
    _print(result.model_dump(mode="json"), [gates_table(result.gates)], as_json)
    require(result.gates, where=str(pipeline.folders_of(recipe).validated_by(engine)))


def recommend(model: Path, requests: Path, out: Path, as_json: bool, **options: Any) -> None:
    """`options`: those of `recommendation.recommend`."""
    found = recommendation.recommend(model, requests, out, **options)
    _print(found.model_dump(mode="json"), [recommendation.table(found)], as_json)


def catalogue(items: Path, out: Path, codebook: int, classes: int, as_json: bool) -> None:
    require_own_index(out)
    facts = build_catalogue(items, out, codebook, classes).model_dump(mode="json")
    _print(facts, [inspection.table({"kind": "catalogue", **facts})], as_json)


def sign(artifacts: Sequence[Path], key: Path | None, fresh_key: Path | None, as_json: bool) -> None:
    signed = signing.sign_all(artifacts, key, fresh_key)
    if fresh_key is not None:
        typer.echo(f"private key: {fresh_key}, public key: {fresh_key}.pub", err=True)
    _print([each.model_dump() for each in signed], [signing.table(signed)] if signed else [], as_json)


def report(recipe_files: Sequence[Path], out: Path) -> None:
    recipes = [load_recipe(path) for path in recipe_files]
    require_own_page(out)
    require_current([load_run(recipe) for recipe in recipes])
    _write_report(recipes, out, "onerec-trt report", {})
    typer.echo(out)


def export_trial(size: str, precision: str, beam: int, folder: Path, record: Path | None) -> None:
    if precision not in PRECISIONS:
        raise RecipeError(f"there is no precision {precision!r}", hint=f"choose one of {', '.join(PRECISIONS)}")
    figures = trial.export_trial(size, cast(PrecisionName, precision), beam, folder)
    if record is not None:
        write_json(record, figures)
    _print(figures, [], as_json=True)


def inspect(path: Path, trust: Sequence[Path], as_json: bool) -> None:
    facts = inspection.inspect(path, trust)
    _print(facts, [inspection.table(facts)], as_json)


def _finish(
    recipes: list[Recipe],
    folder: Path,
    title: str,
    as_json: bool,
    *,
    figures: dict[str, Any] | None = None,
    extra_gates: Sequence[Gate] = (),
) -> None:
    """Report and summary first, so that a failed run can be looked at; then the gates decide the exit code."""
    summary, results = pipeline.summarize(recipes, extra_gates), pipeline.validations(recipes)
    gates = pipeline.all_gates(recipes, extra_gates)
    try:
        _write_report(recipes, folder / pipeline.REPORT_FILE, title, figures or {}, extra_gates)
        pipeline.write_summary(folder / pipeline.SUMMARY_FILE, summary)
    except ArtifactError as error:
        require(gates, where=f"{error.where}, which could not be written: {error.what}")
        raise
    _print(summary, [recipes_table(results), plans_table(summary["plans"]), gates_table(gates, failed_only=True)], as_json)
    typer.echo(f"report: {folder / pipeline.REPORT_FILE}", err=True)
    require(gates, where=str(folder / pipeline.REPORT_FILE))


def _write_report(recipes: list[Recipe], path: Path, title: str, figures: dict[str, Any], extra_gates: Sequence[Gate] = ()) -> None:
    runs = [load_run(recipe) for recipe in recipes]
    write_report(runs, path, title=title, context=figures, extra_gates=extra_gates)


def _show(results: Iterator[StageResult]) -> None:
    for _ in _shown(results):
        pass


def _shown(results: Iterator[StageResult]) -> Iterator[StageResult]:
    console = Console(stderr=True)
    for result in results:
        for line in (stage_line(result.recipe, result.stage, result.record.ran, result.seconds), *stage_warnings(result.record)):
            console.print(line, soft_wrap=True)
        yield result


def _print(value: Any, tables: list[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
        return
    print_results(tables)
