"""All stages of one recipe in their order, and what a run leaves behind: folders, report, summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..builders.stage import PLAN_FOLDERS, build
from ..calibration.stage import calibrate
from ..core.artifacts import write_json
from ..core.errors import ArtifactError
from ..core.recipe import Recipe
from ..core.records import Record
from ..export.stage import export
from ..runtime.machine import this_machine
from ..runtime.verdict import PROOF_FOLDER, inspect_proven
from ..validation.backends import EngineName
from ..validation.gates import Gate
from ..validation.validate import Validation, read_validation, validate

STAGES = ("calibrate", "export", "build", "validate")
VALIDATE: dict[EngineName, str] = {"onnxruntime": "validate", "tensorrt": "validate-tensorrt"}
SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


@dataclass(frozen=True)
class Folders:
    """Where the stages of one recipe put their artifacts. `reference` is shared by all recipes of an output folder.

    `baseline` holds the FP16 baseline's calibration and export; its plans lie beside the recipe's own.
    """

    root: Path
    calibrated: Path
    exported: Path
    baseline: Path
    plans: Path
    validated: Path
    validated_tensorrt: Path
    reference: Path

    def validated_by(self, engine: EngineName) -> Path:
        return self.validated if engine == "onnxruntime" else self.validated_tensorrt


def folders_of(recipe: Recipe) -> Folders:
    """Each target has its plans folder, so that plans of both may lie in one output folder."""
    root = recipe.output / recipe.name
    return Folders(
        root=root,
        calibrated=root / "calibrated",
        exported=root / "exported",
        baseline=root / "fp16-baseline",
        plans=root / PLAN_FOLDERS[recipe.build.target],
        validated=root / "validated",
        validated_tensorrt=root / PROOF_FOLDER,
        reference=recipe.output / "reference",
    )


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """Every stage of a recipe: plans built on their GPU are validated there."""
    return (*STAGES, VALIDATE["tensorrt"]) if recipe.build.target == "tensorrt" else STAGES


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
        OnerecTrtError: Whatever the stage refuses. Failed gates do not raise here; see `validation.gates.require`.
    """
    places = folders_of(recipe)
    plans_tensorrt = places.root / PLAN_FOLDERS["tensorrt"]
    validated = (places.calibrated, places.exported, places.reference)
    bodies: dict[str, Callable[[], Record]] = {
        "calibrate": lambda: calibrate(recipe, recipe.checkpoint, recipe.requests, places.calibrated),
        "export": lambda: export(recipe.export, places.calibrated, places.exported),
        "build": lambda: build(recipe, places.exported, places.plans, _fp16_baseline(recipe, places.baseline)),
        VALIDATE["onnxruntime"]: lambda: validate(recipe, *validated, places.validated),
        VALIDATE["tensorrt"]: lambda: validate(recipe, *validated, places.validated_tensorrt, plans_tensorrt),
    }
    for stage in stages:
        started = time.monotonic()
        record = bodies[stage]()
        yield StageResult(recipe.name, stage, record, time.monotonic() - started)


def _fp16_baseline(recipe: Recipe, folder: Path) -> Path | None:
    """Exported folder of the same checkpoint and beams in FP16, where the recipe asks for it."""
    if not recipe.build.fp16_baseline or recipe.build.target != "tensorrt":
        return None
    this_machine("tensorrt")  # says that there is no GPU before minutes of work
    calibration = recipe.calibration.model_copy(update={"saved_state": None})
    baseline = recipe.model_copy(update={"precision": "fp16", "calibration": calibration})
    calibrate(baseline, baseline.checkpoint, baseline.requests, folder / "calibrated")
    export(baseline.export, folder / "calibrated", folder / "exported")
    return folder / "exported"


def validations(recipes: Sequence[Recipe], engine: EngineName = "onnxruntime") -> list[Validation]:
    """What the validate stage found for each recipe with an engine.

    Raises:
        ArtifactError: A recipe was not validated.
    """
    return [read_validation(folders_of(recipe).validated_by(engine)) for recipe in recipes]


def plans(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Every plan of the recipes: path, target and whether it was seen passing the gates on its GPU.

    Raises:
        ArtifactError: There are no plans, or one does not match its record.
    """
    found = []
    for recipe in recipes:
        files = sorted(folders_of(recipe).plans.glob("*.plan"))
        if not files:
            raise ArtifactError("there are no plans", where=str(folders_of(recipe).plans), hint="run the stage 'build'")
        for file in files:
            record = inspect_proven(file)
            path = str(file.relative_to(recipe.output))
            found.append({"path": path, "target": f"{record.target} sm {record.compute_capability}", "validated": record.validated})
    return found


def summarize(recipes: Sequence[Recipe], extra_gates: Sequence[Gate] = ()) -> dict[str, Any]:
    """The machine-readable result of a run: gates, plans, and four figures per recipe."""
    results, gates = validations(recipes), all_gates(recipes, extra_gates)
    return {
        "gates": [{key: getattr(gate, key) for key in ("name", "recipe", "value", "threshold", "passed")} for gate in gates],
        "plans": plans(recipes),
        "recipes": {
            result.recipe: {
                f"hit@{result.beams.k}": result.beams.hit,
                f"overlap@{result.beams.k}": result.beams.overlap,
                "scoring_error_vs_fp32": _or_null(result.scoring.engine),
                "scoring_error_ratio": _or_null(result.scoring.ratio),
            }
            for result in results
        },
    }


def all_gates(recipes: Sequence[Recipe], extra_gates: Sequence[Gate] = ()) -> list[Gate]:
    """The extra gates, then those of every recipe, then those of plans that ran on their GPU."""
    gates = [*extra_gates, *(gate for result in validations(recipes) for gate in result.gates)]
    for recipe in recipes:
        if recipe.build.target == "tensorrt":
            gates += read_validation(folders_of(recipe).validated_tensorrt).marked_gates
    return gates


def _or_null(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    write_json(path, summary)
