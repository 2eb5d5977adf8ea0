"""How long, and how much memory, the export of a full size takes on this machine; weights are random."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

from ..calibration.random_checkpoint import random_quantized_checkpoint
from ..core.artifacts import files_in, read_json
from ..core.errors import ExportError, RecipeError
from ..core.recipe import ExportOptions, PrecisionName
from ..core.records import tool_version
from ..core.stages import run_stage
from ..export.stage import DESCRIPTION_FILE, export_stage
from ..models.config import SIZES, OneRecConfig

_KIB = 1024
_SEED = 0


def export_trial(size: str, precision: PrecisionName, beam: int, folder: Path) -> dict[str, Any]:
    """Quantize random weights of one of the published sizes and export it; figures of both steps.

    Args:
        size: A name of `models.config.SIZES`.
        precision: fp16, fp8-row or fp8-paper; fp8-static needs calibrated activations.
        beam: Beams kept after each step.
        folder: Gets the quantized checkpoint and the exported files.

    Raises:
        RecipeError: The size is not known.
        CalibrationError: The precision needs calibration.
        ExportError: The process of a step was ended from outside, most likely for its memory.
    """
    if size not in SIZES:
        raise RecipeError(f"there is no size {size!r}", hint=f"choose one of {', '.join(SIZES)}")
    checkpoint, exported = folder / "quantized", folder / "exported"
    steps = {
        "random checkpoint": _measured(_quantize, SIZES[size], precision, checkpoint),
        "export": _measured(_export, checkpoint, exported, beam),
    }
    return {
        "environment": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: tool_version(name) for name in ("onerec-trt", "torch", "onnx", "onnxscript")},
        },
        "size": size,
        "precision": precision,
        "beam": beam,
        "steps": steps,
        "bytes": {file.name: file.stat().st_size for file in files_in(exported)},
        "nodes": read_json(exported / DESCRIPTION_FILE)["nodes"],
    }


def _quantize(config: OneRecConfig, precision: PrecisionName, folder: Path) -> None:
    random_quantized_checkpoint(config, precision, folder, _SEED)


def _export(checkpoint: Path, folder: Path, beam: int) -> None:
    run_stage(export_stage(ExportOptions(beam=(beam, beam, beam)), checkpoint, folder))


def _measured(body: Any, *arguments: Any) -> dict[str, float]:
    """Wall seconds and peak resident memory of a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_child, args=(results, body, arguments))
    started = time.monotonic()
    process.start()
    process.join()
    if results.empty():
        hint = "ended by signal 9? Then memory ran out: take a smaller size or a larger machine"
        raise ExportError(f"the process of this step ended with status {process.exitcode}", where=body.__name__.strip("_"), hint=hint)
    outcome = results.get()
    if isinstance(outcome, BaseException):
        raise outcome
    return {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(outcome / _KIB**2, 2)}


def _child(results: Any, body: Any, arguments: tuple[Any, ...]) -> None:
    try:
        body(*arguments)
    except Exception as error:  # noqa: BLE001 (handed to the parent, which raises it)
        results.put(error)
    else:
        results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
