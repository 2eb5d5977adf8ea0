"""What one recipe left in its folder, read back and checked against the lineage of its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...builders.stage import PLAN_FOLDERS
from ...calibration.summary import QuantizationSummary, read_summary
from ...core.artifacts import Files, read_model, sha256
from ...core.errors import ArtifactError
from ...core.ownership import stage_of
from ...core.recipe import Recipe, with_build_options
from ...core.records import RECORD_NAME, Record, read_record
from ...core.stages import Difference, Stage, declare, differences
from ...export.stage import DESCRIPTION_FILE, Description
from ...runtime.plan_record import PlanRecord
from ...validation.gates import Gate
from ...validation.validate import VALIDATE, Validation, read_validation
from ..pipeline import first_engine, folders_of, plan_records, stages_of


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
        outdated: Folder name, and what of the recipe or the code has changed since that stage ran.
        on_gpu: What validation of the plans on their GPU found beside, if these artifacts went through it. A recipe without ONNX Runtime
            has it as its validation.
    """

    name: str
    precision: str
    folder: Path
    quantization: QuantizationSummary
    description: Description
    plans: dict[str, PlanRecord]
    validation: Validation
    records: dict[str, Record]
    outdated: tuple[tuple[str, Difference], ...] = ()
    on_gpu: Validation | None = None

    @property
    def gates(self) -> list[Gate]:
        """Those of the exported graph, then those of the plans on their GPU."""
        first = self.validation
        return [*(first.marked_gates if first.engine == "tensorrt" else first.gates), *(self.on_gpu.marked_gates if self.on_gpu else ())]

    @property
    def engines(self) -> list[str]:
        """What the gates were run on."""
        return [each.engine for each in (self.validation, self.on_gpu) if each is not None]


def load_run(recipe: Recipe) -> RecipeRun:
    """Read what the stages of a recipe left: plans of one target or of both, and their validation on the GPU if it is of these artifacts.

    Raises:
        ArtifactError: A stage has not run, a file does not match its record, or the stages do not belong together.
    """
    named = {stage.name: stage for stage in stages_of(recipe)}
    calibrated, exported, validated = named["calibrate"], named["export"], named[VALIDATE[first_engine(recipe)]]
    builds = _builds(recipe) or [named["build"]]
    stages = [calibrated, exported, *builds, validated]
    records = {stage.folder.name: _record(stage) for stage in stages}
    _same_lineage(stages, records)
    on_gpu_stage = named[VALIDATE["tensorrt"]]
    on_gpu = None if validated is on_gpu_stage else _of_these(on_gpu_stage, records[validated.folder.name])
    outdated = tuple(_outdated(stages, records))
    if on_gpu is not None:
        records[on_gpu_stage.folder.name] = on_gpu
    judged = (calibrated.folder, exported.folder)
    validation = read_validation(validated.folder, of=judged)
    return RecipeRun(
        name=validation.recipe,
        precision=validation.precision,
        folder=folders_of(recipe).root,
        quantization=read_summary(calibrated.folder),
        description=_description(exported.folder),
        plans={name: plan for build in builds for name, plan in _plans(recipe, build.folder).items()},
        validation=validation,
        records=records,
        outdated=outdated,
        on_gpu=read_validation(on_gpu_stage.folder, of=judged) if on_gpu else None,
    )


def _builds(recipe: Recipe) -> list[Stage]:
    """The build stage of each target that has run: an option of the command chooses another one than the recipe's."""
    recipes = [with_build_options(recipe, target=target) for target in PLAN_FOLDERS]
    stages = [stage for each in recipes for stage in stages_of(each) if stage.name == "build"]
    return [stage for stage in stages if (stage.folder / RECORD_NAME).is_file()]


def _of_these(on_gpu_stage: Stage, validated: Record) -> Record | None:
    """The record of a validation of plans; none where it was of other artifacts than ONNX Runtime's."""
    if not (on_gpu_stage.folder / RECORD_NAME).is_file():
        return None
    record = read_record(on_gpu_stage.folder)
    return record if all(record.read.get(name) == validated.read.get(name) for name in ("quantized_checkpoint", "exported")) else None


def _record(stage: Stage) -> Record:
    hint = f"run `onerec-trt {stage.name}` with this recipe"
    if not (stage.folder / RECORD_NAME).is_file():
        raise ArtifactError(f"the stage '{stage.name}' has not run", where=str(stage.folder), hint=hint)
    record = read_record(stage.folder)
    if record.stage != stage.name:
        problem = f"the record is of the stage '{record.stage}', not of '{stage.name}'"
        raise ArtifactError(problem, where=str(stage.folder / RECORD_NAME), hint=hint)
    return record


def _same_lineage(stages: Sequence[Stage], records: Mapping[str, Record]) -> None:
    """Every stage must have read what the stages before it hold now."""
    folders = {stage.folder for stage in stages}
    for stage in stages:
        read = records[stage.folder.name].read
        made = {name: path for name, path in stage.inputs().items() if isinstance(path, Path) and folders & {path, *path.parents}}
        if any(read.get(name) != sha256(path) for name, path in made.items()):
            raise ArtifactError(
                f"the results of the stage '{stage.name}' were made from other artifacts than those beside it",
                where=str(stage.folder),
                hint=f"run `onerec-trt {stage.name}` with this recipe",
            )


def _outdated(stages: Sequence[Stage], records: Mapping[str, Record]) -> Iterator[tuple[str, Difference]]:
    """Inputs, options and code that have changed since. Inputs that are not there are not asked for: they may lie on another machine."""
    for stage in stages:
        record = records[stage.folder.name]
        present = {name: path for name, path in stage.inputs().items() if _from_outside(path)}
        for difference in differences(record, declare(replace(stage, inputs=partial(dict, present)))):
            asked = difference.name in present if difference.kind == "input" else difference.kind in ("option", "sources")
            if asked:
                yield stage.folder.name, difference


def _from_outside(path: Path | Files) -> bool:
    """Whether an input is there, and no stage made it: what stages made is compared by `_same_lineage`."""
    files = path if isinstance(path, tuple) else (path,)
    return all(file.exists() and stage_of(file) is None and stage_of(file.parent) is None for file in files)


def require_current(runs: Sequence[RecipeRun]) -> None:
    """Refuse runs of another recipe, or of other inputs, than the recipe has now. Other code is a remark in the report.

    Raises:
        ArtifactError: A stage was made from something else; names the first difference and the command that makes it anew.
    """
    for run in runs:
        for folder, difference in run.outdated:
            if difference.kind != "sources":
                raise ArtifactError(
                    f"the results of the recipe '{run.name}' are not what it makes now: {folder}/ was made from another {difference}",
                    where=str(run.folder / folder),
                    hint="run `onerec-trt run` with this recipe, or give the recipe of these results",
                )


def _description(folder: Path) -> Description:
    return read_model(folder / DESCRIPTION_FILE, Description, hint="run `onerec-trt export` again")


def _plans(recipe: Recipe, folder: Path) -> dict[str, PlanRecord]:
    """Plans by file name, oldest GPU generation first; those of TensorRT with their folder before it."""
    prefix = "" if folder.name == PLAN_FOLDERS["tensorrt-rtx"] else f"{folder.name}/"
    plans = [(prefix + path.name, plan) for path, plan in plan_records(recipe, folder)]
    return dict(sorted(plans, key=lambda plan: capability_order(plan[1].compute_capability)))


def capability_order(capability: str) -> tuple[int, ...]:
    """Sorts compute capabilities as numbers: 8.9 comes before 12.0."""
    return tuple(map(int, capability.split(".")))
