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
from .outputs import EngineOutputs, Standing, System
from .table import FidelityTable, Row, fidelity_row, table_of_rows


class ValidatedRecipe(NamedTuple):
    """A recipe and where its validation lies. `rebuilt`: a validation of the same recipe whose plan was built again, or None."""

    name: str
    quantized: bool
    folder: Path
    rebuilt: Path | None = None


def built_again(recipe: str) -> str:
    """The name of a recipe's repetition in the table."""
    return f"{recipe}, built again"


class RecipeComparison:
    """Recipes of one checkpoint beside its FP32 answers. A row is computed once, so that a table may grow recipe by recipe.

    Args:
        model: Name of the checkpoint.
        engine: What ran the recipes.
        job: What the FP32 model was asked.
        reference: Folder of its answers.
    """

    def __init__(self, model: str, engine: str, job: ReferenceJob, reference: Path) -> None:
        self._model, self._engine = model, engine
        self._fp32, self._digest = read_reference(reference), sha256(reference)
        targets_n3 = heldout_requests(job).targets_n3
        assert targets_n3 is not None
        self._targets_n3 = targets_n3
        self._rows: dict[ValidatedRecipe, Row] = {}

    def table(self, recipes: Sequence[ValidatedRecipe]) -> FidelityTable:
        """The noise floor first, what was built again last.

        Raises:
            ArtifactError: A recipe was not validated, or its result was changed since.
            RecipeError: A recipe was validated against another reference.
        """
        systems = sorted((recipe._replace(rebuilt=None) for recipe in recipes), key=lambda recipe: recipe.quantized)
        repeated = [recipe for recipe in recipes if recipe.rebuilt is not None]
        for recipe in (*systems, *repeated):
            if recipe not in self._rows:
                self._rows[recipe] = self._repetition(recipe, recipe.rebuilt) if recipe.rebuilt else self._row(recipe)
        rows = tuple(self._rows[recipe] for recipe in (*systems, *repeated))
        return table_of_rows(self._model, self._engine, rows, self._fp32)

    def _row(self, recipe: ValidatedRecipe) -> Row:
        return fidelity_row(self._system(recipe), self._fp32, self._targets_n3)

    def _repetition(self, recipe: ValidatedRecipe, rebuilt: Path) -> Row:
        first = self._system(recipe)
        again = System(built_again(recipe.name), "noise floor", _outputs(rebuilt, self._digest, recipe.name))
        return fidelity_row(again, self._fp32, self._targets_n3, first)

    def _system(self, recipe: ValidatedRecipe) -> System:
        standing: Standing = "quantized" if recipe.quantized else "noise floor"
        return System(recipe.name, standing, _outputs(recipe.folder, self._digest, recipe.name))


def _outputs(folder: Path, reference: str, recipe: str) -> EngineOutputs:
    """What was kept of a validation that had this reference."""
    if read_record(folder).read["reference"] != reference:
        hint = "recipes of one table share checkpoint, held-out requests, beam and output folder; validate this one again"
        raise RecipeError(f"{recipe} was validated against another FP32 reference", where=str(folder), hint=hint)
    kept = read_outputs(folder / read_validation(folder).outputs)
    return EngineOutputs(kept.sids_nW3, kept.fp32_nW3.sum(-1), kept.scoring_nW3)
