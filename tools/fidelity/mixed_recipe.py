"""The mixed recipe that `sensitivity` finds, as a recipe file that `run` takes as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...core.artifacts import write_text
from ...core.errors import RecipeError
from ...core.recipe import Recipe, parse_recipe
from ...fidelity.mixed import MixedRecipe
from ...fidelity.sensitivity import UnitError
from ..outputs import RECIPE_MARK, require_own_recipe


def require_mixed_recipe(base: Recipe, checkpoint: Path, out: Path) -> None:
    """Check, before anything is measured, that a recipe can be written.

    Raises:
        RecipeError: The recipe to start from is of another checkpoint, or the name of the file is no name of a recipe.
        ArtifactError: Something else lies there.
    """
    if base.checkpoint != checkpoint:
        hint = f"measure {base.checkpoint}, or give a recipe of this checkpoint"
        raise RecipeError(f"the recipe '{base.name}' is of another checkpoint", where=str(checkpoint), hint=hint)
    parse_recipe(_values(base, out, base.precision, ()), where=str(out))
    require_own_recipe(out)


def write_mixed_recipe(base: Recipe, found: MixedRecipe, layers: Sequence[UnitError], out: Path) -> Recipe:
    """Write the recipe: that of `base`, named after its file, with the layers that stay in FP16; what it says.

    Args:
        base: The recipe to start from; its paths become absolute.
        found: Which layers stay in FP16.
        layers: Those that were tried.
        out: The file.

    Raises:
        RecipeError: No linear is left in FP8; attention alone makes no recipe.
        ArtifactError: The disk is full, or the file cannot be written.
    """
    if not any(layer.linears and layer.unit not in found.kept for layer in layers):
        hint = "raise --target; a recipe with precision: fp16 is what the target asks for"
        raise RecipeError(f"an error of {found.target:.3g} nat leaves no linear in FP8", where="--target", hint=hint)
    values = _values(base, out, found.precision, found.kept)
    recipe = parse_recipe(values, where=str(out))
    reason = f"{len(found.kept)} of {len(layers)} layers in FP16: score error {found.error:.3g} nat, {found.error_without:.3g} without"
    write_text(out, f"{RECIPE_MARK}, {reason}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}")
    return recipe


def _values(base: Recipe, out: Path, precision: str, kept: tuple[str, ...]) -> dict[str, Any]:
    changed = base.model_copy(update={"name": out.stem, "precision": precision, "keep_fp16": kept})
    return changed.model_dump(mode="json", by_alias=True, exclude_defaults=True)
