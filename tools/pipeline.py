"""All stages of one recipe in their order, the folders they fill, and the summary of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..builders.preconditions import check_items
from ..builders.stage import PLAN_FOLDERS, build_stage
from ..calibration.stage import Calibration, calibrate_stage
from ..core.artifacts import sha256, write_json
from ..core.errors import ArtifactError, RequestError
from ..core.progress import announce
from ..core.recipe import Recipe
from ..core.records import RECORD_NAME, Record
from ..core.stages import Stage, require_places, run_stage
from ..export.stage import export_stage
from ..runtime.plan_record import PlanRecord
from ..runtime.verdict import inspect_with_verdict
from ..validation.backends import EngineName
from ..validation.fp32_reference import ReferenceJob, reference_stage
from ..validation.gates import Gate
from ..validation.validate import ON_GPU_FOLDER, VALIDATE, Validation, ValidationJob, read_validation, validate_stage
from .outputs import require_own_json, require_own_page

STAGES = ("calibrate", "export", "build", "validate")
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
        validated_tensorrt=root / ON_GPU_FOLDER,
        reference=recipe.output / "reference",
    )


def stages_of(recipe: Recipe) -> list[Stage]:
    """The whole pipeline: every stage of a recipe, in the order they run. Nothing is read or run yet."""
    places = folders_of(recipe)
    calibrated = calibrate_stage(calibration_of(recipe), places.calibrated)
    exported = export_stage(recipe.export, calibrated.folder, places.exported)
    baseline = _fp16_baseline(recipe, places.baseline)
    built = build_stage(
        recipe.build,
        recipe.precision,
        exported.folder,
        places.plans,
        baseline=baseline[-1].folder if baseline else None,
        needs=baseline,
    )
    reference = reference_stage(reference_job_of(recipe), places.reference)
    job = validation_job_of(recipe)
    validated = validate_stage(job, calibrated, exported, reference, places.validated)
    plans = places.root / PLAN_FOLDERS["tensorrt"]  # whatever the recipe's target is: `build` can be asked for another
    validated_tensorrt = validate_stage(job, calibrated, exported, reference, places.validated_tensorrt, plans)
    return [calibrated, exported, built, validated, validated_tensorrt]


def whole_run(recipe: Recipe) -> tuple[str, ...]:
    """Names of the stages that `onerec-trt run` runs: plans built on their GPU are validated there, too."""
    stages = STAGES if first_engine(recipe) == "onnxruntime" else STAGES[:-1]
    return (*stages, VALIDATE["tensorrt"]) if recipe.build.target == "tensorrt" else stages


def first_engine(recipe: Recipe) -> EngineName:
    """The engine whose results stand for a recipe's: ONNX Runtime, unless the recipe leaves it out."""
    return "onnxruntime" if recipe.validation.onnxruntime else "tensorrt"


def calibration_of(recipe: Recipe) -> Calibration:
    """What a recipe quantizes, and how."""
    return Calibration(
        precision=recipe.precision,
        max_context=recipe.max_context,
        options=recipe.calibration,
        checkpoint=recipe.checkpoint,
        requests=recipe.requests,
        key_map=recipe.key_map,
        keep_fp16=recipe.keep_fp16,
    )


def reference_job_of(recipe: Recipe) -> ReferenceJob:
    """What the FP32 reference of a recipe answers."""
    options = recipe.validation
    return ReferenceJob(
        checkpoint=recipe.checkpoint,
        heldout=recipe.heldout,
        beam=recipe.export.beam,
        max_context=recipe.max_context,
        max_requests=options.max_requests,
        batch_size=options.batch_size,
        key_map=recipe.key_map,
        followed=recipe.catalogue if recipe.export.items == "catalogue" else None,
    )


def validation_job_of(recipe: Recipe) -> ValidationJob:
    """What is judged of a recipe, and by which thresholds."""
    return ValidationJob(
        recipe=recipe.name,
        calibration=calibration_of(recipe),
        reference=reference_job_of(recipe),
        options=recipe.validation,
        fused=recipe.build.plugins,
        export=recipe.export,
        catalogue=recipe.catalogue,
    )


def _fp16_baseline(recipe: Recipe, folder: Path) -> tuple[Stage, ...]:
    """The same checkpoint and beams in FP16, calibrated and exported; none unless the recipe asks for it."""
    if not recipe.build.fp16_baseline or recipe.build.target != "tensorrt":
        return ()
    options = recipe.calibration.model_copy(update={"saved_state": None})
    calibration = replace(calibration_of(recipe), precision="fp16", keep_fp16=(), options=options)
    calibrated = calibrate_stage(calibration, folder / "calibrated")
    return calibrated, export_stage(recipe.export, calibrated.folder, folder / "exported")


@dataclass(frozen=True)
class StageResult:
    """One finished stage."""

    recipe: str
    stage: str
    record: Record
    seconds: float


def run_stages(recipe: Recipe, names: Sequence[str] = STAGES) -> Iterator[StageResult]:
    """Run the named stages of a recipe one after the other; each yields when it is done or found up to date.

    Raises:
        OnerecTrtError: Whatever the stage refuses. Failed gates do not raise here; see `validation.gates.require`.
    """
    stages = {stage.name: stage for stage in stages_of(recipe)}
    require_places(*(stages[name] for name in names))  # before hours of work
    if "build" in names:
        check_items(recipe.export, recipe.build)
    if any(name in VALIDATE.values() for name in names) and not recipe.heldout.exists():
        raise RequestError("request file not found", where=str(recipe.heldout), hint="correct the key `heldout` of the recipe")
    for name in names:
        yield timed(recipe.name, stages[name])


def timed(recipe: str, stage: Stage) -> StageResult:
    """Run a stage and take the time; without a terminal, a line says that it begins."""
    announce(f"{recipe} {stage.name} begins")
    started = time.monotonic()
    record = run_stage(stage)
    return StageResult(recipe, stage.name, record, time.monotonic() - started)


def validations(recipes: Sequence[Recipe], engine: EngineName | None = None) -> list[Validation]:
    """What the validate stage found for each recipe with an engine. Default: the recipe's first.

    Raises:
        ArtifactError: A recipe was not validated, or its artifacts are others than those that were.
    """
    return [_validation(folders_of(recipe), engine or first_engine(recipe)) for recipe in recipes]


def _validation(places: Folders, engine: EngineName) -> Validation:
    return read_validation(places.validated_by(engine), of=(places.calibrated, places.exported))


def plans(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Every plan of the recipes: path, target and whether it was seen passing the gates on its GPU.

    Raises:
        ArtifactError: There are no plans, or one does not match its record or was made from another export.
    """
    found = []
    for recipe in recipes:
        for file, record in plan_records(recipe, folders_of(recipe).plans):
            path = str(file.relative_to(recipe.output))
            found.append({"path": path, "target": f"{record.target} sm {record.compute_capability}", "validated": record.validated})
    return found


def plan_records(recipe: Recipe, folder: Path) -> list[tuple[Path, PlanRecord]]:
    """The plans in one of a recipe's folders, with their records.

    Raises:
        ArtifactError: There are no plans, or one does not match its record or was made from another export.
    """
    places = folders_of(recipe)
    exports = [path / RECORD_NAME for path in (places.exported, places.baseline / "exported")]
    digests = {sha256(record) for record in exports if record.is_file()}
    found = [(path, inspect_with_verdict(path)) for path in sorted(folder.glob("*.plan"))]
    if not found:
        raise ArtifactError("there are no plans", where=str(folder), hint="run `onerec-trt build` with this recipe")
    for path, plan in found:
        if plan.made_from.get(RECORD_NAME) not in digests:
            problem = "the plan was made from another export than that beside it"
            raise ArtifactError(problem, where=str(path), hint="run `onerec-trt build` with this recipe")
    return found


def summarize(recipes: Sequence[Recipe], extra_gates: Sequence[Gate] = ()) -> dict[str, Any]:
    """The machine-readable result of a run: gates, plans, and five figures per recipe."""
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
                "valid_items": None if result.validity is None else result.validity.share,
            }
            for result in results
        },
    }


def all_gates(recipes: Sequence[Recipe], extra_gates: Sequence[Gate] = ()) -> list[Gate]:
    """The extra gates, then those of every recipe, then those of plans that ran on their GPU."""
    judged = [recipe for recipe in recipes if recipe.validation.onnxruntime]
    gates = [*extra_gates, *(gate for result in validations(judged) for gate in result.gates)]
    for recipe in recipes:
        if recipe.build.target == "tensorrt":
            gates += _validation(folders_of(recipe), "tensorrt").marked_gates
    return gates


def _or_null(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def require_own_summary(folder: Path) -> None:
    """Check, before hours of work, that report and summary of a run would replace nothing but those of another run.

    Raises:
        ArtifactError: Another file lies there.
    """
    require_own_page(folder / REPORT_FILE)
    require_own_json(folder / SUMMARY_FILE, ("gates", "plans", "recipes"))


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    write_json(path, summary)
