"""The stage 'build': one exported folder becomes plans, one per compute capability or for the GPU in this machine; or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.artifacts import files_in
from ..core.recipe import BuildOptions, PrecisionName
from ..core.records import read_record
from ..core.sources import Sources
from ..core.stages import Stage
from ..runtime.machine import this_machine
from ..runtime.plan_record import PlanRecord
from ..runtime.tensorrt_api import Target
from . import rtx, tensorrt
from .tensorrt import FORMS, Form
from .unused_options import warn_of_unused

PLAN_FOLDERS: dict[Target, str] = {"tensorrt-rtx": "plans", "tensorrt": "plans-tensorrt"}  # plans of both may lie in one output folder


def build_stage(
    options: BuildOptions,
    precision: PrecisionName,
    exported: Path,
    folder: Path,
    *,
    baseline: Path | None = None,
    forms: Sequence[Form] = FORMS,
    needs: tuple[Stage, ...] = (),
) -> Stage:
    """The stage that builds plans into `folder`: per plan `NAME.plan`, the record `NAME.json` and `builder-NAME.log`.

    Args:
        options: Which plans.
        precision: That of the exported graphs.
        exported: Folder of the export stage, with `model.onnx`, `scoring.onnx`, their external data and its record.
        folder: Replaced as a whole.
        baseline: Exported folder of the same checkpoint in FP16, whose plans are built beside. Default: none.
        forms: Graphs that the target `tensorrt` builds. `tensorrt-rtx` builds the serving graph.
        needs: Stages that make the baseline.

    Running it raises:
        ArtifactError: The exported files do not match their record, or the disk is full.
        BuildError: A plan cannot be built; none is left then.
        GpuError: The target is `tensorrt` and there is no GPU.
        MissingExtraError: The target's library, or what compiles the plugin host, is not installed.
    """
    chosen = options.model_dump(mode="json", exclude={"timing_cache"})  # where timings come from is no property of the plans
    folders = {"": exported} if baseline is None else {"": exported, "baseline/": baseline}

    def inputs() -> dict[str, Path]:
        return {f"{prefix}{name}": file for prefix, source in folders.items() for name, file in _files(source).items()}

    if options.target == "tensorrt-rtx":
        return Stage(
            name="build",
            folder=folder,
            sources=sources(options),
            tools=("onnx", "tensorrt-rtx-cu13"),
            options=chosen,
            inputs=inputs,
            body=lambda temporary: _rtx(options, rtx.Origin(exported, precision), temporary),
        )

    def body(temporary: Path) -> dict[str, Any]:
        warn_of_unused(options)
        machine, fp16 = this_machine("tensorrt"), None if baseline is None else tensorrt.Source(baseline, "fp16")
        jobs = tensorrt.plan_jobs(tensorrt.Source(exported, precision), options, machine, fp16, forms)
        return _facts([tensorrt.build_plan(job, options, machine, temporary) for job in jobs])

    return Stage(
        name="build",
        folder=folder,
        sources=sources(options),
        tools=("onnx", "triton") if options.plugins else ("onnx",),
        options=chosen | {"forms": list(forms)},
        inputs=inputs,
        body=body,
        machine=lambda: asdict(this_machine("tensorrt")),
        needs=needs,
    )


def sources(options: BuildOptions) -> Sources:
    """What of the package decides the plans; kernels and their host do where operators run them."""
    parts = ("core", "runtime", "builders")
    if options.plugins:
        return Sources((*parts, "operators", "models/catalogue_index.py", "models/category_classes.py", "models/ordering.py"))
    return Sources(parts, without=("operators", "models", "builders/plugin_host"))


def _files(exported: Path) -> dict[str, Path]:
    read_record(exported)
    return {str(file.relative_to(exported)): file for file in files_in(exported)}


def _rtx(options: BuildOptions, origin: rtx.Origin, folder: Path) -> dict[str, Any]:
    warn_of_unused(options)
    graph, profiles = rtx.prepare(origin.exported / rtx.MODEL, options)
    return _facts([rtx.build_plan(graph, profiles, each, options.fp8_coverage, folder, origin) for each in options.compute_capabilities])


def _facts(records: list[PlanRecord]) -> dict[str, Any]:
    return {record.plan: record.model_dump(mode="json") for record in records}
