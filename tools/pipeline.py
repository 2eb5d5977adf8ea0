"""All stages of one recipe in their order, and what a run leaves behind: folders, report, summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..builders.plan_record import inspect_plan
from ..builders.stage import PLAN_FOLDERS, build
from ..calibration.stage import calibrate
from ..core.artefacts import write_json
from ..core.errors import ArtefactError
from ..core.recipe import Recipe
from ..core.records import Record
from ..core.tensorrt_api import Target
from ..engines.gates import Gate
from ..engines.validate import Validation, read_validation, validate
from ..export.stage import export

STAGES = ("calibrate", "export", "build", "validate")
SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


@dataclass(frozen=True)
class Folders:
    """Where the stages of one recipe put their artefacts. `reference` is shared by all recipes of an output folder.

    `twin` holds the FP16 twin's calibration and export; its plans lie beside the recipe's own.
    """

    root: Path
    calibrated: Path
    exported: Path
    twin: Path
    plans: Path
    validated: Path
    reference: Path


def folders_of(recipe: Recipe) -> Folders:
    """Each target has its plans folder, so that plans of both may lie in one output folder."""
    root = recipe.output / recipe.name
    return Folders(
        root=root,
        calibrated=root / "calibrated",
        exported=root / "exported",
        twin=root / "fp16-twin",
        plans=root / PLAN_FOLDERS[recipe.build.target],
        validated=root / "validated",
        reference=recipe.output / "reference",
    )


def with_target(recipe: Recipe, target: Target) -> Recipe:
    """The recipe with another library to build for."""
    return recipe.model_copy(update={"build": recipe.build.model_copy(update={"target": target})})


@dataclass(frozen=True)
class StageResult:
    """One finished stage."""

    recipe: str
    stage: str
    record: Record
    seconds: float


def run_stages(recipe: Recipe, stages: Sequence[str] = STAGES) -> Iterator[StageResult]:
    """Run the given stages of a recipe one after the other; each yields when it is done or found up to date.

    Raises:
        OnerecTrtError: Whatever the stage refuses. Failed gates do not raise here; see `engines.gates.require`.
    """
    places = folders_of(recipe)
    bodies: dict[str, Callable[[], Record]] = {
        "calibrate": lambda: calibrate(recipe, recipe.checkpoint, recipe.requests, places.calibrated),
        "export": lambda: export(recipe.export, places.calibrated, places.exported),
        "build": lambda: build(recipe, places.exported, places.plans, _fp16_twin(recipe, places.twin)),
        "validate": lambda: validate(recipe, places.calibrated, places.exported, places.reference, places.validated),
    }
    for stage in stages:
        started = time.monotonic()
        record = bodies[stage]()
        yield StageResult(recipe.name, stage, record, time.monotonic() - started)


def _fp16_twin(recipe: Recipe, folder: Path) -> Path | None:
    """Exported folder of the same checkpoint and beams in FP16, where the recipe asks for it."""
    if not recipe.build.fp16_twin or recipe.build.target != "tensorrt":
        return None
    calibration = recipe.calibration.model_copy(update={"saved_state": None})
    twin = recipe.model_copy(update={"precision": "fp16", "calibration": calibration})
    calibrate(twin, twin.checkpoint, twin.requests, folder / "calibrated")
    export(twin.export, folder / "calibrated", folder / "exported")
    return folder / "exported"


def validations(recipes: Sequence[Recipe]) -> list[Validation]:
    """What the validate stage found for each recipe.

    Raises:
        ArtefactError: A recipe was not validated.
    """
    return [read_validation(folders_of(recipe).validated) for recipe in recipes]


def plans(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Every plan of the recipes: path, target and whether it was seen running on its GPU.

    Raises:
        ArtefactError: There are no plans, or one does not match its record.
    """
    found = []
    for recipe in recipes:
        files = sorted(folders_of(recipe).plans.glob("*.plan"))
        if not files:
            raise ArtefactError("there are no plans", where=str(folders_of(recipe).plans), hint="run the stage 'build'")
        for file in files:
            record = inspect_plan(file)
            path = str(file.relative_to(recipe.output))
            found.append({"path": path, "target": f"{record.target} sm {record.compute_capability}", "validated": record.validated})
    return found


def summarise(recipes: Sequence[Recipe], extra_gates: Sequence[Gate] = ()) -> dict[str, Any]:
    """The machine-readable result of a run: gates, plans, and four figures per recipe."""
    results = validations(recipes)
    gates = [*extra_gates, *(gate for result in results for gate in result.gates)]
    return {
        "gates": [{key: getattr(gate, key) for key in ("name", "recipe", "value", "threshold", "passed")} for gate in gates],
        "plans": plans(recipes),
        "recipes": {
            result.recipe: {
                f"hit@{result.beams.k}": result.beams.hit,
                f"overlap@{result.beams.k}": result.beams.overlap,
                "forced_error_vs_fp32": _or_null(result.forced.engine),
                "forced_error_ratio": _or_null(result.forced.ratio),
            }
            for result in results
        },
    }


def _or_null(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    write_json(path, summary)
