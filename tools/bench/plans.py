"""Plans for a benchmark of full sizes: random weights, packed, exported and built on the spot; what is there already is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ...builders.stage import build_stage
from ...calibration.quantized import open_quantized
from ...calibration.random_checkpoint import random_quantized_checkpoint
from ...core.artifacts import read_json, write_json
from ...core.precision import PRECISIONS
from ...core.recipe import BuildOptions, ExportOptions, PrecisionName, Profile
from ...core.sources import Sources
from ...core.stages import Stage, run_stage
from ...export.stage import export_stage
from ...models.catalogue_index import INDEX_SOURCES
from ...models.config import OneRecConfig
from ...runtime.plan_record import PlanRecord
from ...runtime.verdict import inspect_with_verdict
from .random_scales import input_amax

SEED = 0  # of weights and features: the PyTorch baseline runs the same model
AMAX_FILE = "amax.json"
SCALES_SOURCES = Sources(
    ("core", *INDEX_SOURCES, "models", "operators", "calibration/targets.py", "export", "tools/bench/random_scales.py"),
    without=("operators/kernels", "operators/launch"),
)
WITH_KERNELS = "+kernels"  # of a recipe's name: operators that have a kernel run it in the plan
RECIPES: tuple[str, ...] = tuple(f"{name}{ending}" for ending in ("", WITH_KERNELS) for name in get_args(PrecisionName))
ItemsName = Literal["open", "catalogue"]
_ENDING: dict[ItemsName, str] = {"open": "", "catalogue": "-catalogue"}  # of a folder's name


@dataclass(frozen=True)
class BenchPlan:
    """A plan of the serving graph, its record, and the recipe's name: a precision, and whether kernels run."""

    path: Path
    record: PlanRecord
    recipe: str


def precision_of(recipe: str) -> PrecisionName:
    """Of a recipe's name, such as 'fp8-row+kernels'."""
    name: PrecisionName = cast(PrecisionName, recipe.removesuffix(WITH_KERNELS))
    assert name in get_args(PrecisionName), recipe
    return name


def make_plan(
    config: OneRecConfig,
    recipe: str,
    beam: tuple[int, int, int],
    profiles: Sequence[Profile],
    folder: Path,
    timing_cache: Path,
    items: ItemsName = "open",
) -> BenchPlan:
    """Checkpoint, graph and plan of one model in one precision, in `folder`; nothing is made twice.

    `items`: whether its beams are open or follow a catalogue, as in `ExportOptions`. Default: open.

    Raises:
        CalibrationError: fp8-static of a model with experts.
        BuildError: TensorRT refuses, or runs fewer products in FP8 than the graph holds; or beams follow a catalogue without kernels.
        ArtifactError: The disk is full.
    """
    precision, plugins = precision_of(recipe), recipe.endswith(WITH_KERNELS)
    _, exported = make_graph(config, precision, beam, folder, scoring=False, items=items)
    plans = folder / precision / (("plan-with-kernels" if plugins else "plan") + _ENDING[items])
    options = BuildOptions(target="tensorrt", profiles=tuple(profiles), timing_cache=timing_cache, plugins=plugins)
    run_stage(build_stage(options, precision, exported, plans, forms=("serving",)))
    (plan,) = plans.glob("*.plan")
    return BenchPlan(plan, inspect_with_verdict(plan), recipe)


def make_graph(
    config: OneRecConfig,
    precision: PrecisionName,
    beam: tuple[int, int, int],
    folder: Path,
    *,
    scoring: bool = True,
    items: ItemsName = "open",
) -> tuple[Path, Path]:
    """Folders of a quantized checkpoint of random weights and of its graphs, in `folder`; nothing is made twice.

    Raises:
        CalibrationError: fp8-static of a model with experts.
        ArtifactError: The disk is full.
    """
    checkpoint, exported = (folder / precision / name for name in ("checkpoint", f"exported{_ENDING[items]}"))
    _quantize(config, precision, checkpoint, folder)
    run_stage(export_stage(ExportOptions(beam=beam, items=items), checkpoint, exported, scoring=scoring))
    return checkpoint, exported


def _quantize(config: OneRecConfig, precision: PrecisionName, checkpoint: Path, folder: Path) -> None:
    amax = _input_amax(config, folder) if PRECISIONS[precision].needs_activation_amax else None
    random_quantized_checkpoint(config, precision, checkpoint, SEED, amax)


def _input_amax(config: OneRecConfig, folder: Path) -> dict[str, float]:
    """Of the groups of linears, from the model in fp8-row: a forward pass of a whole model takes minutes, and is made once."""
    rows, scales = folder / "fp8-row" / "checkpoint", folder / "fp8-row" / "scales"
    random_quantized_checkpoint(config, "fp8-row", rows, SEED)

    def body(temporary: Path) -> dict[str, Any]:
        write_json(temporary / AMAX_FILE, input_amax(open_quantized(rows), SEED))
        return {}

    stage = Stage(
        name="random-scales",
        folder=scales,
        sources=SCALES_SOURCES,
        tools=("torch",),
        options={"seed": SEED},
        inputs=lambda: {"rows": rows},
        body=body,
    )
    run_stage(stage)
    amax: dict[str, float] = read_json(scales / AMAX_FILE)
    return amax
