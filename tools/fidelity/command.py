"""What the commands about fidelity do: they read the options, call the package, and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from ...core.artifacts import write_json
from ...core.errors import RecipeError
from ...core.recipe import Recipe, load_recipe
from ...fidelity.analysis import analyze as analyze_checkpoint
from ...fidelity.checkpoint_sensitivity import checkpoint_sensitivity
from ...fidelity.recipes import RecipeComparison, ValidatedRecipe
from ...fidelity.table import FidelityTable, bars
from ...validation.backends import EngineName
from ..outputs import require_own_json, require_own_page
from ..pipeline import folders_of, reference_job_of
from ..tables import gates_table
from ..terminal import print_results
from .analysis_page import write_analysis
from .analysis_tables import analysis_tables
from .fidelity_page import write_fidelity
from .mixed_recipe import require_mixed_recipe, write_mixed_recipe
from .sensitivity_tables import sensitivity_tables
from .tables import fidelity_text

_PRECISION = "fp8-paper"  # of sensitivity, where none is given


def analyze(checkpoint: Path, requests: Path, out: Path, key_map: Path | None, limit: int, as_json: bool) -> None:
    require_own_page(out)
    found = analyze_checkpoint(checkpoint, requests, key_map, limit)
    write_analysis(found, out)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False))
        return
    print_results(analysis_tables(found))
    typer.echo(f"with plots: {out}", err=True)


def sensitivity(
    checkpoint: Path,
    requests: Path,
    as_json: bool,
    *,
    precision: str = "",
    target: float | None = None,
    key_map: Path | None = None,
    limit: int = 64,
    device: str = "cpu",
    recipe_file: Path | None = None,
    out: Path | None = None,
) -> None:
    """`recipe_file` and `out`: a recipe to start from, and the mixed one to write. Without a precision it is the recipe's."""
    base = None if recipe_file is None else load_recipe(recipe_file)
    if (base is None) != (out is None):
        raise RecipeError("a mixed recipe needs a recipe to start from and a file", where="--recipe, --out", hint="give both, or none")
    if base is not None and out is not None:
        require_mixed_recipe(base, checkpoint, out)
        precision, key_map = precision or base.precision, key_map or base.key_map
    found = checkpoint_sensitivity(checkpoint, requests, precision or _PRECISION, target, limit, chosen_device(device), key_map)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False))
    else:
        print_results(sensitivity_tables(found))
    if base is not None and out is not None:
        write_mixed_recipe(base, found.mixed, found.sensitivity.layers, out)
        typer.echo(f"recipe: {out}", err=True)


def fidelity(recipe_files: Sequence[Path], out: Path, engine: EngineName, again: Sequence[Path], as_json: bool) -> None:
    table = compare([load_recipe(path) for path in recipe_files], out, engine, [load_recipe(path) for path in again])
    if as_json:
        typer.echo(json.dumps(table.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False))
        return
    judged = bars(table)
    print_results([fidelity_text(table), *([gates_table(judged, failed_only=True)] if judged else [])])


def compare(recipes: Sequence[Recipe], out: Path, engine: EngineName, again: Sequence[Recipe] = ()) -> FidelityTable:
    """Write the fidelity table of validated recipes as a JSON file, and its page beside it.

    Raises:
        ArtifactError: A recipe was not validated, something else lies in the place of the files, or the disk is full.
        RecipeError: One was validated against another reference, or a repeated recipe has no partner.
    """
    require_own_fidelity(out)
    table = table_of(recipes, engine, again)
    write_json(out, table.model_dump(mode="json"))
    write_fidelity(table, page := out.with_suffix(".html"))
    typer.echo(f"fidelity: {page}", err=True)
    return table


def require_own_fidelity(out: Path) -> None:
    """Check that the JSON file and its page would replace nothing but another fidelity table.

    Raises:
        ArtifactError: Something else lies there.
    """
    require_own_json(out, ("model", "engine", "rows"))
    require_own_page(out.with_suffix(".html"))


def table_of(recipes: Sequence[Recipe], engine: EngineName, again: Sequence[Recipe] = ()) -> FidelityTable:
    """The fidelity table of validated recipes.

    Raises:
        ArtifactError: One was not validated.
        RecipeError: One was validated against another reference, or a repeated recipe has no partner.
    """
    validated = validated_recipes(recipes, engine, again)  # before anything is read
    return comparison_of(recipes[0], engine).table(validated)


def comparison_of(recipe: Recipe, engine: EngineName) -> RecipeComparison:
    """What compares a recipe, and others of its checkpoint, with FP32's answers, which are there already."""
    return RecipeComparison(recipe.checkpoint.name, engine, reference_job_of(recipe), folders_of(recipe).reference)


def validated_recipes(recipes: Sequence[Recipe], engine: EngineName, again: Sequence[Recipe] = ()) -> list[ValidatedRecipe]:
    """Recipes and where an engine's validation of them lies, with those of `again` as their repetitions.

    Raises:
        RecipeError: A repeated recipe has no partner.
    """
    repeated = {recipe.name: folders_of(recipe).validated_by(engine) for recipe in again}
    for name in repeated.keys() - {recipe.name for recipe in recipes}:
        raise RecipeError(f"there is no recipe {name} to compare its repetition with", where="--again", hint="give both, under one name")
    return [
        ValidatedRecipe(recipe.name, recipe.scheme.is_quantized, folders_of(recipe).validated_by(engine), repeated.get(recipe.name))
        for recipe in recipes
    ]


def chosen_device(name: str) -> torch.device:
    """The device of a name; without a name a GPU if there is one.

    Raises:
        RecipeError: PyTorch knows no such device, or has none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"the device cannot be used: {first}", where="--device", hint="choose cuda, cuda:N or cpu") from None
    return device
