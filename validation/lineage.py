"""Checks that the artifacts at hand are the ones this recipe makes, before anything is measured on them."""

from __future__ import annotations

from pathlib import Path

from ..calibration.stage import identity as calibration_identity
from ..core.artifacts import sha256
from ..core.errors import ArtifactError
from ..core.recipe import Recipe
from ..core.records import Record, read_record
from ..export.stage import identity


def require_lineage(recipe: Recipe, quantized: Path, exported: Path) -> None:
    """Check the two stage folders against the recipe and each other.

    Raises:
        ArtifactError: A file does not match its record, or a folder was made from other inputs or options; names the stage to run again.
    """
    calibrated, graph = read_record(quantized), read_record(exported)
    inputs = _calibration_inputs(recipe)
    for name in {**inputs, **calibrated.read}:
        if name not in inputs or calibrated.read.get(name) != sha256(inputs[name]):
            raise _made_from_another(name.replace("_", " "), quantized, calibrated)
    for name, value in calibration_identity(recipe).items():
        if calibrated.options.get(name) != value:
            raise _made_from_another("version of the calibration" if name == "sources" else name.replace("_", " "), quantized, calibrated)
    if graph.read.get("quantized") != sha256(quantized):
        raise _made_from_another("quantized checkpoint", exported, graph)
    wanted = identity(recipe.export)
    if graph.options.get("beam") != wanted["beam"]:
        raise _made_from_another("beam", exported, graph)
    if graph.options != wanted:
        raise _made_from_another("version of the exporter", exported, graph)


def _calibration_inputs(recipe: Recipe) -> dict[str, Path]:
    optional = {"key_map": recipe.key_map, "saved_state": recipe.calibration.saved_state}
    return {"checkpoint": recipe.checkpoint, "requests": recipe.requests} | {
        name: path for name, path in optional.items() if path is not None
    }


def _made_from_another(what: str, folder: Path, record: Record) -> ArtifactError:
    return ArtifactError(
        f"the result of the stage '{record.stage}' was made from another {what}",
        where=str(folder),
        hint=f"run `onerec-trt {record.stage}` with this recipe",
    )
