"""The stage 'build': one exported folder becomes plans, one per compute capability or for the GPU in this machine; or nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.artifacts import files_in
from ..core.recipe import Recipe
from ..core.records import Record, read_record, run_stage
from ..runtime.machine import Machine, this_machine
from ..runtime.plan_record import PlanRecord
from ..runtime.tensorrt_api import Target
from . import rtx, tensorrt

MODEL = "model.onnx"
PLAN_FOLDERS: dict[Target, str] = {"tensorrt-rtx": "plans", "tensorrt": "plans-tensorrt"}  # plans of both may lie in one output folder


def build(recipe: Recipe, exported: Path, folder: Path, baseline: Path | None = None) -> Record:
    """Build the recipe's plans.

    Args:
        recipe: Its `build` section says which.
        exported: Folder of the export stage, with `model.onnx`, `scoring.onnx`, their external data and its record.
        folder: Gets per plan `sm89.plan`, the record `sm89.json` and `builder-sm89.log`; replaced as a whole.
        baseline: Exported folder of the same checkpoint in FP16, whose plans are built beside. Default: none.

    Raises:
        ArtifactError: The exported files do not match their record, or the disk is full.
        BuildError: A plan cannot be built; none is left then.
        GpuError: The target is `tensorrt` and there is no GPU.
        MissingExtraError: The target's library, or what compiles the plugin host, is not installed.
    """
    sources = {"": exported, "baseline/": baseline}
    read = {f"{prefix}{name}": file for prefix, source in sources.items() if source is not None for name, file in _files(source).items()}
    if recipe.build.target == "tensorrt-rtx":
        options = recipe.build.model_dump(mode="json", exclude={"timing_cache"}) | {"sources": tensorrt.sources(recipe.build).sha256()}
        return run_stage("build", folder, read=read, options=options, tools=("onnx", "tensorrt-rtx-cu13"), body=_rtx(recipe, exported))
    machine = this_machine("tensorrt")
    tools = ("onnx", "triton") if recipe.build.plugins else ("onnx",)
    body = _tensorrt(recipe, machine, exported, baseline)
    return run_stage("build", folder, read=read, options=tensorrt.identity(recipe.build, machine), tools=tools, body=body)


def _files(exported: Path) -> dict[str, Path]:
    read_record(exported)
    return {str(file.relative_to(exported)): file for file in files_in(exported)}


def _rtx(recipe: Recipe, exported: Path) -> Any:
    def body(folder: Path) -> dict[str, Any]:
        graph = rtx.prepare(exported / MODEL, recipe.build)
        coverage = recipe.build.fp8_coverage
        return _facts([rtx.build_plan(graph, capability, coverage, folder) for capability in recipe.build.compute_capabilities])

    return body


def _tensorrt(recipe: Recipe, machine: Machine, exported: Path, baseline: Path | None) -> Any:
    def body(folder: Path) -> dict[str, Any]:
        fp16 = None if baseline is None else tensorrt.Source(baseline, "fp16")
        with tensorrt.working_folder(folder) as working:
            jobs = tensorrt.plan_jobs(tensorrt.Source(exported, recipe.precision), recipe.build, machine, working, fp16)
            return _facts([tensorrt.build_plan(job, recipe.build, machine, folder) for job in jobs])

    return body


def _facts(records: list[PlanRecord]) -> dict[str, Any]:
    return {record.plan: record.model_dump(mode="json") for record in records}
