"""Sensitivity of any checkpoint on some requests, and the mixed recipe that it leads to."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from ..calibration.scoring import with_paths
from ..core.errors import RecipeError
from ..core.precision import PRECISIONS
from ..models.checkpoint import open_checkpoint
from ..models.requests import read_requests
from .mixed import MixedRecipe, search
from .packed_source import input_amax, observe
from .packed_systems import run_fp32
from .sensitivity import Sensitivity, make_probe, sensitivity

_BATCH, _BEAM, _PATHS = 16, (64, 64, 64), 16


class CheckpointSensitivity(BaseModel):
    """What `sensitivity` finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sensitivity: Sensitivity
    mixed: MixedRecipe


def checkpoint_sensitivity(
    checkpoint: Path, requests: Path, precision: str, target: float | None, limit: int, device: torch.device, key_map: Path | None = None
) -> CheckpointSensitivity:
    """Measure a checkpoint.

    Args:
        checkpoint: Folder with config.json and safetensors.
        requests: Parquet file; scores are compared along FP32's own beams.
        precision: One that quantizes something.
        target: Mean absolute error of an item's score in nat that a mixed recipe is to reach. Default: half of that without one.
        limit: The first requests only, at most this many.
        device: Where it is computed.
        key_map: YAML file that says how the checkpoint names its tensors. Default: as this package does.

    Raises:
        RecipeError: The precision is unknown or quantizes nothing, or the target is no finite number.
        CheckpointError, RequestError: An input is malformed.
    """
    if precision not in PRECISIONS or not PRECISIONS[precision].is_quantized:
        known = ", ".join(name for name, scheme in PRECISIONS.items() if scheme.is_quantized)
        raise RecipeError(f"{precision!r} is no precision that quantizes something", where="--precision", hint=f"choose one of {known}")
    if target is not None and not math.isfinite(target):
        raise RecipeError(f"{target} is no error in nat", where="--target", hint="give a finite number")
    model = open_checkpoint(checkpoint, key_map).load_model().to(device)
    given = read_requests(requests, model.config, limit=limit)
    amax = input_amax(observe(model, with_paths(model, given, _BATCH)))
    fp32 = run_fp32(model, given, _BEAM, _BATCH)
    probe = make_probe(model, given, fp32.reference, amax, limit, _PATHS, _BATCH)
    found = sensitivity(probe, precision)
    return CheckpointSensitivity(sensitivity=found, mixed=search(probe, found, target))
