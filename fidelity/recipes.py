"""The fidelity table of recipes that were validated: what `validate` kept of each engine, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.artifacts import sha256
from ..core.errors import RecipeError
from ..core.records import read_record
from ..validation.fp32_reference import ReferenceJob, heldout_requests, read_reference
from ..validation.outputs import read_outputs
from ..validation.validate import read_validation
from .outputs import EngineOutputs, System
from .table import FidelityTable, fidelity_table


class ValidatedRecipe(NamedTuple):
    """A recipe and where its validation lies. `rebuilt`: a validation of the same recipe whose plan was built again, or None."""

    name: str
    quantized: bool
    folder: Path
    rebuilt: Path | None = None


def recipes_fidelity(model: str, engine: str, recipes: Sequence[ValidatedRecipe], job: ReferenceJob, reference: Path) -> FidelityTable:
    """The table of recipes of one checkpoint on the same held-out requests.

    Args:
        model: Name of the checkpoint.
        engine: What ran the recipes.
        recipes: In the order of the table.
        job: What the FP32 model was asked.
        reference: Folder of its answers.

    Raises:
        ArtifactError: A recipe was not validated, or its result was changed since.
        RecipeError: A recipe was validated against another reference.
    """
    known = sha256(reference)
    systems, repeats = [], []
    for recipe in recipes:
        system = System(recipe.name, "quantized" if recipe.quantized else "noise floor", _outputs(recipe.folder, known, recipe.name))
        systems.append(system)
        if recipe.rebuilt is not None:
            again = System(f"{recipe.name}, built again", "noise floor", _outputs(recipe.rebuilt, known, recipe.name))
            repeats.append((system, again))
    requests = heldout_requests(job)
    assert requests.targets_n3 is not None
    systems.sort(key=lambda system: system.standing != "noise floor")
    return fidelity_table(model, engine, systems, read_reference(reference), requests.targets_n3, repeats)


def _outputs(folder: Path, reference: str, recipe: str) -> EngineOutputs:
    """What was kept of a validation that had this reference."""
    if read_record(folder).read["reference"] != reference:
        hint = "recipes of one table share checkpoint, held-out requests, beam and output folder; validate this one again"
        raise RecipeError(f"{recipe} was validated against another FP32 reference", where=str(folder), hint=hint)
    kept = read_outputs(folder / read_validation(folder).outputs)
    return EngineOutputs(kept.sids_nW3, kept.fp32_nW3.sum(-1), kept.scoring_nW3)
