"""What `dev reference` does: a trained reference from its data to its results, in parts of some minutes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from ...core.recipe import Recipe
from ...fidelity.reference_measurement import MeasurementJob, ReferenceMeasurement, measure_reference
from ...fidelity.reference_run import train_reference
from ...fidelity.reference_training import late_fall
from ...fidelity.references import Decay, reference_model
from ...fidelity.table import FidelityTable, bars
from ...runtime.machine import driver_version, this_machine
from ...validation.backends import EngineName
from ...validation.gates import require
from ..environment import software
from ..tables import gates_table
from ..terminal import print_results
from .reference_recipes import EngineTables, answer_in_fp32, reference_recipes, systems_of
from .results_page import JSON_FILE, merged, require_own_results, write_results
from .tables import fidelity_text

_SHOWN_LOSSES = 12
_TOOLS = ("onerec-trt", "torch", "triton", "onnx", "onnxruntime", "nvidia-modelopt", "numpy")


@dataclass(frozen=True)
class ReferenceOptions:
    """Which reference, where its state lies, where its results go, and how long this part may take.

    Args:
        size: A name in REFERENCES.
        seed: Of world, users and weights.
        steps, decay: Of the training. Default: the reference's own.
        state: Folder of data, states and checkpoints.
        out: Folder of results; those of other references stay in them.
        minutes: After them no part begins; the next call goes on.
        requests: Held-out requests that are measured.
        batch_size: Of them, at once.
        device: Where PyTorch computes.
        engine: What runs the recipes of the reference, after all else. Default: they are not made.
        engine_requests: Held-out requests of the recipes. Default: as many as are measured.
        commit: Of the product. Default: read from git.
    """

    size: str
    seed: int
    steps: int | None
    decay: Decay | None
    state: Path
    out: Path
    minutes: float
    requests: int
    batch_size: int
    device: torch.device
    engine: EngineName | None = None
    engine_requests: int | None = None
    commit: str = ""


def run_reference(options: ReferenceOptions) -> None:
    """Train, measure and write results until all is done or the time is over.

    With an engine, the recipes and the FP32 answers that they share are there as soon as the training is finished, whatever the time:
    other processes may run recipes while this one measures, and what they validated is not run again.

    Raises:
        RecipeError: There is no such reference.
        ArtifactError: A state is damaged or another training's, or something else lies in the place of the results.
        MissingExtraError, GpuError: TensorRT is to run the recipes, and does not load or finds no GPU.
        GateError: All is measured, and a bar is missed.
    """
    deadline = time.monotonic() + 60 * options.minutes
    require_own_results(options.out)
    if options.engine == "tensorrt":
        this_machine("tensorrt")  # not after minutes of training: results name its version
    reference = reference_model(options.size, options.steps, options.decay)
    figures = train_reference(options.size, reference, options.seed, options.state, options.minutes, options.device, _say)
    typer.echo(_training_text(figures))
    found = ReferenceMeasurement(training=figures, device="")
    found = _measured(options, _recipes(options), deadline) if figures["finished"] else _written(options, found)
    missing = unfinished(found, options.engine)
    if missing:
        typer.echo(f"not done yet: {', '.join(missing)}; the same command goes on")
    typer.echo(f"results: {options.out / JSON_FILE}", err=True)
    if not missing:
        require((*found.bars, *found.engine_bars), where=str(options.out / JSON_FILE))


def _recipes(options: ReferenceOptions) -> list[Recipe]:
    """The recipes of the reference and what FP32 answers; none without an engine."""
    if options.engine is None:
        return []
    requests = options.engine_requests or options.requests
    recipes = reference_recipes(options.size, options.seed, options.state, reference_model(options.size), requests, options.batch_size)
    answer_in_fp32(recipes)
    return recipes


def _measured(options: ReferenceOptions, recipes: Sequence[Recipe], deadline: float) -> ReferenceMeasurement:
    """Measure what is left, and write the results after each part. What an engine has answered already is in them from the first one on."""
    job = MeasurementJob(options.size, options.seed, options.state, options.requests, options.batch_size, options.device, deadline, _say)
    tables = None if options.engine is None else EngineTables(recipes, options.engine, _say)
    answered = _answered(tables)
    found = None
    for found in measure_reference(job):
        found = _written(options, found.model_copy(update=answered))
    assert found is not None
    if not unfinished(found):
        for table in () if tables is None else tables.run(deadline):
            found = _written(options, found.model_copy(update=_of_engine(table)))
    for shown, judged in ((found.table, found.bars), (found.engine_table, found.engine_bars)):
        if shown is not None:
            print_results([fidelity_text(shown), gates_table(judged)])
    return found


def _answered(tables: EngineTables | None) -> dict[str, Any]:
    """The table and the bars of recipes that are validated already, as fields of a measurement; none where no recipe is."""
    validated = [] if tables is None else list(tables.run(-math.inf))
    return _of_engine(validated[-1]) if validated else {}


def _of_engine(table: FidelityTable) -> dict[str, Any]:
    return {"engine_table": table, "engine_bars": tuple(bars(table))}


def _written(options: ReferenceOptions, found: ReferenceMeasurement) -> ReferenceMeasurement:
    """Write what is known so far, with what it was measured with, beside the results of other references; gives what was written."""
    found = found.model_copy(update={"environment": _environment(options)})
    write_results(merged(found, options.out), options.out)
    return found


def _environment(options: ReferenceOptions) -> dict[str, Any]:
    """Versions and commit, on a GPU its name and driver, and the library that ran plans."""
    environment = software(_TOOLS, options.commit)
    if options.device.type == "cuda":
        environment |= {"gpu": torch.cuda.get_device_name(options.device), "driver": driver_version()}
    if options.engine == "tensorrt":
        environment["tensorrt"] = this_machine("tensorrt").library_version
    return environment


def unfinished(found: ReferenceMeasurement, engine: EngineName | None = None) -> list[str]:
    """Parts of a reference that are still to come, those of the engine that is asked for included."""
    if not found.training["finished"]:
        return ["training", "measurement"]
    parts = {"table": found.table, "layers": found.layers, "analysis": found.analysis, "stress": found.stress, "mixed recipe": found.mixed}
    missing = [name for name, part in parts.items() if part is None]
    if engine is not None:
        ran = () if found.engine_table is None else tuple(row.system for row in found.engine_table.rows)
        missing += [f"recipe {system}" for system in systems_of(engine) if system not in ran]
    return missing


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _training_text(figures: dict[str, Any]) -> str:
    """The figures of a training in a few lines."""
    losses = figures["losses"]
    shown = " ".join(f"{loss:.3f}" for loss in losses[:: max(1, len(losses) // _SHOWN_LOSSES)])
    lines = [
        f"{figures['reference']}, seed {figures['seed']}: step {figures['steps']} of {figures['of_steps']} in {figures['seconds']:.0f} s",
        f"losses: {shown}",
    ]
    if figures["finished"]:
        flat = "flat" if figures["flat"] else "not flat"
        lines.append(
            f"held-out loss {figures['heldout_loss']:.4f} nat; over the last tenth the loss fell by {late_fall(losses):.2%}: {flat}"
        )
        lines.append(f"finished: checkpoint {figures['checkpoint_sha256'][:16]}")
    return "\n".join(lines)
