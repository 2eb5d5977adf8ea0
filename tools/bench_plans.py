"""Plans for a benchmark of full sizes: random weights, frozen, exported and built on the spot; what is there already is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..builders.machine import Machine
from ..builders.plan_record import PlanRecord
from ..builders.tensorrt import Source, build_plan, plan_jobs, working_folder
from ..calibration.quantised import open_quantised
from ..calibration.random_checkpoint import random_quantised_checkpoint
from ..core.artefacts import files_in
from ..core.precision import PRECISIONS
from ..core.recipe import BuildOptions, ExportOptions, PrecisionName, Profile
from ..core.records import run_stage
from ..engines.proof import inspect_proven
from ..export.stage import export
from ..models.config import OneRecConfig
from .random_scales import input_amax

SEED = 0  # of weights and features: the PyTorch opponent runs the same model
MAX_CONTEXT = 3072


@dataclass(frozen=True)
class BenchPlan:
    """A plan of the serving graph, its record, and its precision."""

    path: Path
    record: PlanRecord
    precision: PrecisionName


def make_plan(
    config: OneRecConfig,
    precision: PrecisionName,
    beam: tuple[int, int, int],
    profiles: Sequence[Profile],
    machine: Machine,
    folder: Path,
    timing_cache: Path,
) -> BenchPlan:
    """Checkpoint, graph and plan of one model in one precision, in `folder`; nothing is made twice.

    Raises:
        CalibrationError: fp8-static of a model with experts.
        BuildError: TensorRT refuses, or runs fewer products in FP8 than the graph holds.
        ArtefactError: The disk is full.
    """
    checkpoint, exported, plans = (folder / precision / name for name in ("checkpoint", "exported", "plan"))
    _freeze(config, precision, checkpoint, folder)
    export(ExportOptions(beam=beam), checkpoint, exported)
    options = BuildOptions(target="tensorrt", profiles=tuple(profiles), timing_cache=timing_cache)
    run_stage(
        "bench-plan",
        plans,
        read={file.name: file for file in files_in(exported)},
        options=options.model_dump(mode="json", exclude={"timing_cache"}) | {"machine": asdict(machine)},
        tools=("onnx",),
        body=partial(_build, Source(exported, precision), options, machine),
    )
    (plan,) = plans.glob("*.plan")
    return BenchPlan(plan, inspect_proven(plan), precision)


def _freeze(config: OneRecConfig, precision: PrecisionName, checkpoint: Path, folder: Path) -> None:
    amax = None
    if PRECISIONS[precision].needs_activation_amax:
        rows = folder / "fp8-row" / "checkpoint"
        random_quantised_checkpoint(config, "fp8-row", rows, SEED)
        amax = input_amax(open_quantised(rows), SEED)
    random_quantised_checkpoint(config, precision, checkpoint, SEED, amax)


def _build(source: Source, options: BuildOptions, machine: Machine, folder: Path) -> dict[str, Any]:
    with working_folder(folder) as working:
        (job,) = [job for job in plan_jobs(source, options, machine, working) if job.form == "serving"]
        record = build_plan(job, options, machine, folder)
    return {"build_seconds": record.build_seconds}
