"""A trained reference through the real pipeline: a recipe for each precision, and the fidelity table of what its engine answered."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from ...core.artifacts import write_text
from ...core.errors import OnerecTrtError
from ...core.recipe import MIN_REQUESTS, Recipe, load_recipe
from ...core.stages import is_current, run_stage
from ...fidelity.recipes import built_again
from ...fidelity.reference_data import request_file
from ...fidelity.reference_run import reference_folders
from ...fidelity.references import ReferenceModel
from ...fidelity.table import FidelityTable
from ...validation.backends import EngineName
from ...validation.fp32_reference import reference_stage
from ...validation.validate import VALIDATE
from ..pipeline import folders_of, reference_job_of, run_stages, stages_of
from .command import comparison_of, validated_recipes

# FP16 first, as the noise floor; then the fastest.
PRECISIONS = ("fp16", "fp8-row-block", "fp8-row", "fp8-paper", "fp8-static", "fp8-paper-attention")
REPEATED = PRECISIONS[1]  # its plans are built twice
AGAIN = "again"  # folder beside the others, of what is built once more
_STAGES: dict[EngineName, tuple[str, ...]] = {
    "onnxruntime": ("calibrate", "export", VALIDATE["onnxruntime"]),
    "tensorrt": ("calibrate", "export", "build", VALIDATE["tensorrt"]),
}


def reference_recipes(size: str, seed: int, root: Path, reference: ReferenceModel, requests: int, batch_size: int) -> list[Recipe]:
    """Recipes of a trained reference for the GPU in the machine, written into its folder: `onerec-trt run` takes them, too.

    Args:
        size, seed, root, reference: As of `train_reference`.
        requests: Held-out requests; a validation takes 64 at least.
        batch_size: The largest batch of a plan.
    """
    folders, world = reference_folders(size, seed, root), reference.world
    longest = max(2, world.static[1] + world.short_term[1] + world.long_term[1])
    recipes = []
    for precision in PRECISIONS:
        values = {
            "name": precision,
            "precision": precision,
            "keep_fp16": [] if precision == "fp16" else list(reference.keep_fp16),
            "checkpoint": str(folders.checkpoint),
            "requests": str(request_file(folders.data, "calibration")),
            "heldout": str(request_file(folders.data, "heldout")),
            "output": str(folders.state / "recipes"),
            "calibration": {"max_requests": reference.users["calibration"], "min_routed_tokens": 1},
            "export": {"beam": list(reference.beam)},
            "build": {
                "target": "tensorrt",
                "plugins": True,
                "profiles": [{"batch": [1, batch_size, batch_size], "context": [2, longest, longest]}],
            },
            # ONNX Runtime would take days for all requests: where it is wanted, its stage is run by name
            "validate": {"max_requests": max(MIN_REQUESTS, requests), "batch_size": batch_size, "onnxruntime": False},
        }
        write_text(path := folders.state / "recipes" / f"{precision}.yaml", yaml.safe_dump(values, sort_keys=False))
        recipes.append(load_recipe(path))
    return recipes


def systems_of(engine: EngineName) -> list[str]:
    """What a whole table of an engine has a row of, as the rows name it."""
    return [*PRECISIONS, *([built_again(REPEATED)] if engine == "tensorrt" else [])]


def answer_in_fp32(recipes: Sequence[Recipe]) -> None:
    """Make the FP32 reference that all recipes share, so that processes which run them side by side find it."""
    run_stage(reference_stage(reference_job_of(recipes[0]), folders_of(recipes[0]).reference))


class EngineTables:
    """The table of a reference's recipes as one engine answers them, and at the end of the plans of REPEATED, built once more.

    Args:
        recipes: Of one checkpoint, FP16 first; what FP32 answers lies in their folder.
        engine: ONNX Runtime runs exported graphs on the CPU, TensorRT their plans on the GPU.
        say: Gets a line for each recipe that fails.
    """

    def __init__(self, recipes: Sequence[Recipe], engine: EngineName, say: Callable[[str], None]) -> None:
        self._recipes, self._engine, self._say = recipes, engine, say
        self._comparison = comparison_of(recipes[0], engine)
        self._failed: list[OnerecTrtError] = []

    def run(self, deadline: float) -> Iterator[FidelityTable]:
        """The table of what is validated already, if anything is; then with one more recipe each time. One that fails stops no other.

        Args:
            deadline: On the clock of `time.monotonic`; no recipe begins after it.

        Raises:
            OnerecTrtError: A recipe failed, the first that did; it comes after the last table.
        """
        done = {recipe.name for recipe in self._recipes if self._is_validated(recipe)}
        if done:
            yield self._table(done)
        for recipe in self._recipes:
            if recipe.name not in done and time.monotonic() < deadline and self._validate(recipe, _STAGES[self._engine]):
                done.add(recipe.name)
                yield self._table(done)
        if self._engine == "tensorrt" and REPEATED in done and time.monotonic() < deadline:
            recipe = self._named(REPEATED)
            if not self._is_validated(again := for_another_build(recipe)):
                copy_for_another_build(recipe)
                if self._validate(again, ("build", VALIDATE["tensorrt"])):
                    yield self._table(done)
        if self._failed:
            raise self._failed[0]

    def _table(self, done: set[str]) -> FidelityTable:
        repeated = for_another_build(self._named(REPEATED)) if REPEATED in done else None
        again = [] if repeated is None or not self._is_validated(repeated) else [repeated]
        recipes = [recipe for recipe in self._recipes if recipe.name in done]
        return self._comparison.table(validated_recipes(recipes, self._engine, again))

    def _named(self, name: str) -> Recipe:
        return next(recipe for recipe in self._recipes if recipe.name == name)

    def _validate(self, recipe: Recipe, stages: Sequence[str]) -> bool:
        try:
            for _ in run_stages(recipe, stages):
                pass
        except OnerecTrtError as error:
            self._failed.append(error)
            self._say(f"{recipe.name} failed: {error.what}")
            return False
        return True

    def _is_validated(self, recipe: Recipe) -> bool:
        return is_current(next(stage for stage in stages_of(recipe) if stage.name == VALIDATE[self._engine]))


def for_another_build(recipe: Recipe) -> Recipe:
    """The recipe with an output folder of its own, and without timings of the first build."""
    return recipe.model_copy(update={"output": recipe.output / AGAIN, "build": recipe.build.model_copy(update={"timing_cache": None})})


def copy_for_another_build(recipe: Recipe) -> None:
    """Put everything that a build needs, and the same FP32 reference, into the output folder of another build."""
    sources, copies = folders_of(recipe), folders_of(for_another_build(recipe))
    for name in ("reference", "calibrated", "exported"):
        shutil.copytree(getattr(sources, name), getattr(copies, name), dirs_exist_ok=True)
