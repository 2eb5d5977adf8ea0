"""The stage 'build': one exported folder becomes one plan per compute capability, or nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.artefacts import files_in
from ..core.recipe import Recipe
from ..core.records import Record, read_record, run_stage
from .rtx import build_plan, plan_name, prepare

MODEL = "model.onnx"
_TOOLS = ("onnx", "tensorrt-rtx-cu13")


def build(recipe: Recipe, exported: Path, folder: Path) -> Record:
    """Build the recipe's plans of the serving graph.

    Args:
        recipe: Its `build` section says which.
        exported: Folder of the export stage, with `model.onnx`, its external data and its record.
        folder: Gets per plan `sm89.plan`, the record `sm89.json` and `builder-sm89.log`; replaced as a whole.

    Raises:
        ArtefactError: The exported files do not match their record, or the disk is full.
        BuildError: A plan cannot be built; none is left then.
        MissingExtraError: TensorRT-RTX is not installed.
    """
    read_record(exported)

    def body(temporary: Path) -> dict[str, Any]:
        graph = prepare(exported / MODEL, recipe.build)
        records = [build_plan(graph, capability, recipe.build.fp8_coverage, temporary) for capability in recipe.build.compute_capabilities]
        return {plan_name(r.compute_capability): r.model_dump(mode="json") for r in records}

    read = {str(file.relative_to(exported)): file for file in files_in(exported)}
    return run_stage("build", folder, read=read, options=recipe.build.model_dump(mode="json"), tools=_TOOLS, body=body)
