"""The command line `onerec-trt`. Results go to standard output (a table, or JSON with --json), progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..core.artefacts import write_json
from ..core.errors import OnerecTrtError
from ..core.recipe import Recipe, load_recipe
from ..engines.gates import require
from . import demo as demo_run
from . import inspection, pipeline
from .export_trial import export_trial as measure_export
from .pipeline import StageResult
from .report import load_run, write_report
from .tables import gates_table, plans_table, recipes_table, stage_line

app = typer.Typer(
    name="onerec-trt",
    help="From a trained OneRec-V2 checkpoint to a TensorRT plan in FP8 that is proven right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe; configs/ holds examples.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]
INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main() -> None:
    """Run the command line; a typed error becomes a message and its exit code, never a traceback."""
    console = Console(stderr=True)
    try:
        app()
    except OnerecTrtError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted; finished stages are kept, nothing is half-written")
        sys.exit(INTERRUPTED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Train a small model on synthetic data and take it through the whole pipeline in all four precisions."""
    _show(demo_run.prepare(out))
    recipes = demo_run.recipes(out)
    _show(demo_run.run(out, recipes))
    gates, figures = demo_run.model_gates(recipes[0])
    _finish(recipes, out, "onerec-trt demo", figures, as_json, gates)


@app.command()
def run(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Every stage of one recipe: calibrate, export, build, validate, report."""
    recipe = load_recipe(recipe_file)
    _show(pipeline.run_stages(recipe))
    _finish([recipe], pipeline.folders_of(recipe).root, f"onerec-trt run {recipe.name}", {}, as_json)


@app.command()
def calibrate(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Quantise a checkpoint with ModelOpt and freeze its scales."""
    _one_stage(recipe_file, "calibrate", as_json)


@app.command()
def export(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Write the serving graph and its forced form as ONNX."""
    _one_stage(recipe_file, "export", as_json)


@app.command()
def build(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Compile the serving graph into plans."""
    _one_stage(recipe_file, "build", as_json)


@app.command()
def validate(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Hold the exported graph against every gate; exits with 2 when one fails."""
    recipe = load_recipe(recipe_file)
    _show(pipeline.run_stages(recipe, ["validate"]))
    (result,) = pipeline.validations([recipe])
    _print(result.model_dump(mode="json"), [gates_table(result.gates)], as_json)
    require(result.gates, where=str(pipeline.folders_of(recipe).validated))


@app.command()
def report(
    recipe_files: Annotated[list[Path], typer.Argument(metavar="RECIPE.yaml...", help="Recipes to show side by side.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("out/report.html"),
) -> None:
    """Write one self-contained HTML report of finished runs."""
    recipes = [load_recipe(path) for path in recipe_files]
    _write_report(recipes, out, "onerec-trt report", {})
    typer.echo(out)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A plan, a stage's folder, or a checkpoint.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what an artefact is, what it was made from, and whether it still matches its record."""
    facts = inspection.inspect(path)
    _print(facts, [inspection.table(facts)], as_json)


@app.command("export-trial")
def export_trial(
    size: Annotated[str, typer.Argument(help="A published size, e.g. 4B-A0.5B.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the files; several GB for the large sizes.")] = Path("out/trial"),
    precision: Annotated[str, typer.Option(help="fp16, fp8-row or fp8-paper.")] = "fp8-paper",
    beam: Annotated[int, typer.Option(help="Beams kept after each step.")] = 512,
    record: Annotated[Path | None, typer.Option(help="Also write the figures into this JSON file.")] = None,
) -> None:
    """Export a full size with random weights: how long and how much memory it takes on this machine."""
    figures = measure_export(size, precision, beam, out)
    if record is not None:
        write_json(record, figures)
    typer.echo(json.dumps(figures, indent=2, sort_keys=True))


def _one_stage(recipe_file: Path, stage: str, as_json: bool) -> None:
    recipe = load_recipe(recipe_file)
    for result in _shown(pipeline.run_stages(recipe, [stage])):
        if as_json:
            _print(result.record.model_dump(mode="json"), [], as_json)


def _finish(recipes: list[Recipe], folder: Path, title: str, figures: dict[str, Any], as_json: bool, extra_gates: Iterable[Any] = ()) -> None:
    """Report and summary first, so that a failed run can be looked at; then the gates decide the exit code."""
    extra = list(extra_gates)
    summary = pipeline.summarise(recipes, extra)
    _write_report(recipes, folder / pipeline.REPORT_FILE, title, figures)
    pipeline.write_summary(folder / pipeline.SUMMARY_FILE, summary)
    gates = [*extra, *(gate for result in pipeline.validations(recipes) for gate in result.gates)]
    tables = [recipes_table(pipeline.validations(recipes)), plans_table(summary["plans"]), gates_table(gates, failed_only=True)]
    _print(summary, tables, as_json)
    typer.echo(f"report: {folder / pipeline.REPORT_FILE}", err=True)
    require(gates, where=str(folder / pipeline.REPORT_FILE))


def _write_report(recipes: list[Recipe], path: Path, title: str, figures: dict[str, Any]) -> None:
    write_report([load_run(pipeline.folders_of(recipe).root) for recipe in recipes], path, title=title, context=figures)


def _show(results: Iterator[StageResult]) -> None:
    for _ in _shown(results):
        pass


def _shown(results: Iterator[StageResult]) -> Iterator[StageResult]:
    console = Console(stderr=True)
    for result in results:
        console.print(stage_line(result.recipe, result.stage, result.record.ran, result.seconds))
        yield result


def _print(value: Any, tables: list[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2, sort_keys=True))
        return
    console = Console()
    for table in tables:
        console.print(table)
