"""What one recipe left in its folder, read back and checked against the lineage of its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...builders.stage import PLAN_FOLDERS
from ...calibration.summary import QuantizationSummary, read_summary
from ...core.artifacts import read_json, sha256
from ...core.errors import ArtifactError
from ...core.records import RECORD_NAME, Record, read_record
from ...export.stage import DESCRIPTION_FILE, Description
from ...runtime.plan_record import PlanRecord
from ...runtime.verdict import PROOF_FOLDER, inspect_proven
from ...validation.gates import Gate
from ...validation.validate import Validation, read_validation

CALIBRATED, EXPORTED, VALIDATED = "calibrated", "exported", "validated"


@dataclass(frozen=True)
class RecipeRun:
    """One recipe's results.

    Args:
        name: Name of the recipe.
        precision: Its precision, e.g. `fp8-row`.
        folder: Where its stage folders lie.
        quantization, description, plans, validation: What the stages wrote; plans by file name, `validated` where they passed every
            gate on their GPU.
        records: Record of each stage, by folder name, in the order the stages run.
        on_gpu: What validation of the plans on their GPU found, if these artifacts went through it.
    """

    name: str
    precision: str
    folder: Path
    quantization: QuantizationSummary
    description: Description
    plans: dict[str, PlanRecord]
    validation: Validation
    records: dict[str, Record]
    on_gpu: Validation | None = None

    @property
    def gates(self) -> list[Gate]:
        """Those of the exported graph, then those of the plans on their GPU."""
        return [*self.validation.gates, *(self.on_gpu.marked_gates if self.on_gpu else ())]

    @property
    def engines(self) -> list[str]:
        """What the gates were run on."""
        return [each.engine for each in (self.validation, self.on_gpu) if each is not None]


def load_run(folder: Path) -> RecipeRun:
    """Read a recipe's stage folders: `calibrated`, `exported`, `plans` or `plans-tensorrt` or both, `validated`, and `validated-tensorrt`
    if it is of these artifacts.

    Raises:
        ArtifactError: A stage has not run, a file does not match its record, or the stages do not belong together.
    """
    first, *others = PLAN_FOLDERS.values()
    built = [name for name in (first, *others) if (folder / name / RECORD_NAME).is_file()] or [first]
    stages = {CALIBRATED: "calibrate", EXPORTED: "export", **dict.fromkeys(built, "build"), VALIDATED: "validate"}
    records = {name: _record(folder / name, stage) for name, stage in stages.items()}
    _same_lineage(folder, records, built)
    on_gpu = _of_these(folder, records[VALIDATED])
    if on_gpu is not None:
        records[PROOF_FOLDER] = on_gpu
    validation = read_validation(folder / VALIDATED)
    return RecipeRun(
        name=validation.recipe,
        precision=validation.precision,
        folder=folder,
        quantization=read_summary(folder / CALIBRATED),
        description=_description(folder / EXPORTED),
        plans={key: plan for name in built for key, plan in _plans(folder / name, "" if name == first else f"{name}/").items()},
        validation=validation,
        records=records,
        on_gpu=read_validation(folder / PROOF_FOLDER) if on_gpu else None,
    )


def _of_these(folder: Path, validated: Record) -> Record | None:
    """The record of a validation of plans; none where it was of other artifacts than ONNX Runtime's."""
    if not (folder / PROOF_FOLDER / RECORD_NAME).is_file():
        return None
    record = read_record(folder / PROOF_FOLDER)
    return record if all(record.read.get(name) == validated.read.get(name) for name in ("quantized", "exported")) else None


def _record(folder: Path, stage: str) -> Record:
    if not (folder / RECORD_NAME).is_file():
        raise ArtifactError(f"the stage '{stage}' has not run", where=str(folder), hint=f"run `onerec-trt {stage}` with this recipe")
    record = read_record(folder)
    if record.stage != stage:
        problem = f"the record is of the stage '{record.stage}', not of '{stage}'"
        raise ArtifactError(problem, where=str(folder / RECORD_NAME), hint=f"run `onerec-trt {stage}` with this recipe")
    return record


def _same_lineage(folder: Path, records: dict[str, Record], built: Sequence[str]) -> None:
    """Every stage must have read what the stages before it hold now."""
    calibrated, exported = sha256(folder / CALIBRATED), sha256(folder / EXPORTED)
    links = {
        EXPORTED: records[EXPORTED].read.get("quantized") == calibrated,
        **{name: records[EXPORTED].wrote.items() <= records[name].read.items() for name in built},
        VALIDATED: (records[VALIDATED].read.get("quantized"), records[VALIDATED].read.get("exported")) == (calibrated, exported),
    }
    for name, whole in links.items():
        if not whole:
            raise ArtifactError(
                f"the results of the stage '{records[name].stage}' were made from other artifacts than those beside it",
                where=str(folder / name),
                hint=f"run `onerec-trt {records[name].stage}` with this recipe",
            )


def _description(folder: Path) -> Description:
    path = folder / DESCRIPTION_FILE
    try:
        return Description.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"malformed: {error.errors()[0]['msg']}", where=str(path), hint="run `onerec-trt export` again") from None


def _plans(folder: Path, prefix: str) -> dict[str, PlanRecord]:
    """Plans by file name, oldest GPU generation first."""
    plans = [(prefix + path.name, inspect_proven(path)) for path in sorted(folder.glob("*.plan"))]
    if not plans:
        raise ArtifactError("no plan was built", where=str(folder), hint="run `onerec-trt build` with this recipe")
    return dict(sorted(plans, key=lambda plan: capability_order(plan[1].compute_capability)))


def capability_order(capability: str) -> tuple[int, ...]:
    """Sorts compute capabilities as numbers: 8.9 comes before 12.0."""
    return tuple(map(int, capability.split(".")))
