"""Everything that is measured on a trained reference: the fidelity table in every precision, distributions, sensitivity, stress."""

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
from .distributions import Summary, analyze_model, summarize
from .mixed import MixedRecipe, search
from .packed_source import PackedSource
from .packed_systems import packed_systems, run_fp32, run_packed
from .ranker import train_ranker
from .reference_data import request_file
from .reference_run import ReferenceFolders, reference_folders, reference_model
from .sensitivity import Sensitivity, make_probe, sensitivity
from .stress_measurement import Stress, measure_stress
from .table import FidelityTable, bars, fidelity_table

_CALIBRATION_BATCH = 64
_PROBE_REQUESTS, _PROBE_PATHS = 128, 16
_STRESS_REQUESTS, _STRESS_PATHS = 48, 8


class ReferenceMeasurement(BaseModel):
    """What was measured on one trained reference. `training`: as in its training.json. `device`: what packed models ran on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any]
    device: str
    table: FidelityTable
    bars: tuple[Gate, ...]
    analysis: Summary
    ranking: Summary
    ranking_auc: float
    sensitivity: tuple[Sensitivity, ...]
    mixed: tuple[MixedRecipe, ...]
    stress: Stress


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

    def note(what: str) -> None:
        say(f"{what} after {time.monotonic() - started:.0f} s")

    training = _finished_training(folders)
    model = open_checkpoint(folders.checkpoint).load_model()
    calibration, heldout = (_requests(folders, split, model) for split in ("calibration", "heldout"))
    scoring = with_paths(model, calibration, _CALIBRATION_BATCH)
    distributions, ranker = analyze_model(model, scoring, size), train_ranker(heldout, model.config.codebook)
    note("analysis")
    few = heldout.select(slice(requests))
    assert few.targets_n3 is not None
    amax = {t.name.removesuffix(".input"): t.absmax for t in distributions.tensors if t.name.endswith(".input")}
    fp32 = run_fp32(model.to(device), few, reference_model(size).beam, batch_size)
    note("FP32 reference")
    systems = packed_systems(fp32, PRECISIONS, amax)
    again = run_packed(fp32, PackedSource(model, "fp16", {}), "fp16, another batch", max(1, batch_size // 2 - 1))
    table = fidelity_table(size, "pytorch", systems, fp32.reference, few.targets_n3, [(systems[0], again)])
    note("fidelity table")
    probe = make_probe(model, few, fp32.reference, amax, _PROBE_REQUESTS, _PROBE_PATHS, batch_size)
    found = tuple(sensitivity(probe, precision) for precision in ("fp8-static", "fp8-paper"))
    mixed = tuple(search(probe, each) for each in found)
    note("sensitivity and mixed recipes")
    on_cpu = make_probe(model.cpu(), few, fp32.reference, amax, _STRESS_REQUESTS, _STRESS_PATHS, batch_size)
    stress = measure_stress(on_cpu, scoring.first(_STRESS_REQUESTS))
    note("stress")
    return ReferenceMeasurement(
        training=training,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        table=table,
        bars=tuple(bars(table)),
        analysis=summarize(distributions),
        ranking=summarize(ranker.distributions),
        ranking_auc=ranker.auc,
        sensitivity=found,
        mixed=mixed,
        stress=stress,
    )


def _finished_training(folders: ReferenceFolders) -> dict[str, Any]:
    training: dict[str, Any] = read_json(folders.figures) if folders.figures.exists() else {"finished": False}
    if not training["finished"]:
        hint = "run `onerec-trt dev train-reference` with the same size, seed and state until it says finished"
        raise ArtifactError("this reference is not trained to the end", where=str(folders.state), hint=hint)
    return training


def _requests(folders: ReferenceFolders, split: str, model: OneRec) -> Requests:
    return read_requests(request_file(folders.data, split), model.config, need_targets=True)
