"""Everything that is measured on a trained reference: the fidelity table in every precision, and what the bars say of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from ..calibration.scoring import with_paths
from ..core.artifacts import read_json
from ..core.errors import ArtifactError
from ..core.precision import PRECISIONS
from ..models.checkpoint import open_checkpoint
from ..models.onerec import OneRec
from ..models.requests import Requests, read_requests
from ..validation.gates import Gate
from .packed_source import PackedSource, input_amax, observe
from .packed_systems import packed_systems, run_fp32, run_packed
from .reference_data import request_file
from .reference_run import ReferenceFolders, reference_folders, reference_model
from .table import FidelityTable, bars, fidelity_table

_CALIBRATION_BATCH = 64


class ReferenceMeasurement(BaseModel):
    """What was measured on one trained reference. `training`: as in its training.json. `device`: what it was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any]
    device: str
    table: FidelityTable
    bars: tuple[Gate, ...]


def measure_reference(
    size: str, seed: int, root: Path, requests: int, batch_size: int, device: torch.device, say: Callable[[str], None]
) -> ReferenceMeasurement:
    """Measure a reference whose training is finished.

    Args:
        size, seed, root: As `train_reference` had them.
        requests: Held-out requests, the first ones.
        batch_size: Requests at once.
        device: Where the packed models run in PyTorch.
        say: Gets a line of progress now and then.

    Raises:
        ArtifactError: The training is not finished.
        RecipeError: There is no such reference.
    """
    started, folders = time.monotonic(), reference_folders(size, seed, root)
    training = _finished_training(folders)
    model = open_checkpoint(folders.checkpoint).load_model()
    heldout = _requests(folders, "heldout", model).select(slice(requests))
    assert heldout.targets_n3 is not None
    amax = input_amax(observe(model, with_paths(model, _requests(folders, "calibration", model), _CALIBRATION_BATCH)))
    say(f"activations observed after {time.monotonic() - started:.0f} s")
    fp32 = run_fp32(model.to(device), heldout, reference_model(size).beam, batch_size)
    say(f"FP32 reference after {time.monotonic() - started:.0f} s")
    systems = packed_systems(fp32, PRECISIONS, amax)
    again = run_packed(fp32, PackedSource(model, "fp16", {}), "fp16, another batch", max(1, batch_size // 2 - 1))
    table = fidelity_table(size, "pytorch", systems, fp32.reference, heldout.targets_n3, [(systems[0], again)])
    say(f"fidelity table after {time.monotonic() - started:.0f} s")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return ReferenceMeasurement(training=training, device=name, table=table, bars=tuple(bars(table)))


def _finished_training(folders: ReferenceFolders) -> dict[str, Any]:
    training: dict[str, Any] = read_json(folders.figures) if folders.figures.exists() else {"finished": False}
    if not training["finished"]:
        hint = "run `onerec-trt dev train-reference` with the same size, seed and state until it says finished"
        raise ArtifactError("this reference is not trained to the end", where=str(folders.state), hint=hint)
    return training


def _requests(folders: ReferenceFolders, split: str, model: OneRec) -> Requests:
    return read_requests(request_file(folders.data, split), model.config, need_targets=True)
