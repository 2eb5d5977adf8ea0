"""Everything that is measured on a trained reference: the fidelity table in every precision, distributions, sensitivity, stress."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from ..calibration.scoring import with_paths
from ..core.artifacts import read_json, write_json
from ..core.errors import ArtifactError
from ..core.precision import PRECISIONS
from ..models.checkpoint import open_checkpoint
from ..models.onerec import OneRec
from ..models.requests import Requests, read_requests
from ..validation.gates import Gate
from .distributions import Summary, analyze_model, summarize
from .mixed import MixedRecipe, search
from .packed_source import PackedSource
from .packed_systems import Fp32Run, packed_systems, run_fp32, run_packed
from .ranker import train_ranker
from .reference_data import request_file
from .reference_run import ReferenceFolders, reference_folders, reference_model
from .sensitivity import Probe, Sensitivity, make_probe, sensitivity
from .stress_measurement import Stress, measure_stress
from .table import FidelityTable, bars, fidelity_table

_CALIBRATION_BATCH = 64
_PROBE_REQUESTS, _PROBE_PATHS = 128, 16
_STRESS_REQUESTS, _STRESS_PATHS = 48, 8


class Analyzed(BaseModel):
    """Distributions in few numbers, the ranking model's beside them, and the AbsMax of what each group of linears reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Summary
    ranking: Summary
    ranking_auc: float
    input_amax: dict[str, float]


class Layers(BaseModel):
    """What layers cost, by precision, and the mixed recipes that follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sensitivity: tuple[Sensitivity, ...]
    mixed: tuple[MixedRecipe, ...]


class ReferenceMeasurement(BaseModel):
    """What was measured on one trained reference.

    `training`: as in its training.json. `device`: what packed models ran on. `layers`, `stress`: None where only the table was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any]
    device: str
    table: FidelityTable
    bars: tuple[Gate, ...]
    analysis: Analyzed
    layers: Layers | None
    stress: Stress | None


def measure_reference(
    size: str,
    seed: int,
    root: Path,
    requests: int,
    batch_size: int,
    device: torch.device,
    say: Callable[[str], None],
    table_only: bool = False,
) -> ReferenceMeasurement:
    """Measure a reference whose training is finished. Each part is kept as soon as it is done; the next call goes on.

    Args:
        size, seed, root: As `train_reference` had them.
        requests: Held-out requests, the first ones.
        batch_size: Requests at once.
        device: Where the packed models run in PyTorch.
        say: Gets a line of progress now and then.
        table_only: Leave out sensitivity and stress.

    Raises:
        ArtifactError: The training is not finished.
        RecipeError: There is no such reference.
    """
    started, folders = time.monotonic(), reference_folders(size, seed, root)
    training = _finished_training(folders)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    parts = _Parts(folders.state / f"measured-{training['checkpoint_sha256'][:16]}-{requests}-{name.replace(' ', '-')}", say, started)
    subject = _Subject(size, folders, requests, batch_size, device)
    analyzed = parts.get("analysis", Analyzed, subject.analyzed)
    table = parts.get("table", FidelityTable, lambda: subject.table(analyzed.input_amax))
    layers = None if table_only else parts.get("layers", Layers, lambda: subject.layers(analyzed.input_amax))
    stress = None if table_only else parts.get("stress", Stress, lambda: subject.stress(analyzed.input_amax))
    return ReferenceMeasurement(
        training=training, device=name, table=table, bars=tuple(bars(table)), analysis=analyzed, layers=layers, stress=stress
    )


Model = TypeVar("Model", bound=BaseModel)


class _Parts:
    """Parts of a measurement as files of a folder: what is there is not measured again."""

    def __init__(self, folder: Path, say: Callable[[str], None], started: float) -> None:
        self._folder, self._say, self._started = folder, say, started

    def get(self, name: str, kind: type[Model], measure: Callable[[], Model]) -> Model:
        path = self._folder / f"{name}.json"
        if path.exists():
            return kind.model_validate(read_json(path))
        found = measure()
        write_json(path, found.model_dump(mode="json"))
        self._say(f"{name} after {time.monotonic() - self._started:.0f} s")
        return found


class _Subject:
    """A trained reference in memory, its requests, and FP32's answers, which are computed when they are first needed."""

    def __init__(self, size: str, folders: ReferenceFolders, requests: int, batch_size: int, device: torch.device) -> None:
        self._size, self._batch_size, self._device = size, batch_size, device
        self._model = open_checkpoint(folders.checkpoint).load_model()
        self._heldout = _requests(folders, "heldout", self._model)
        self._few = self._heldout.select(slice(requests))
        self._scoring = with_paths(self._model, _requests(folders, "calibration", self._model), _CALIBRATION_BATCH)

    @cached_property
    def _fp32(self) -> Fp32Run:
        """On the device; so is the model from then on."""
        return run_fp32(self._model.to(self._device), self._few, reference_model(self._size).beam, self._batch_size)

    def analyzed(self) -> Analyzed:
        found, ranker = analyze_model(self._model, self._scoring, self._size), train_ranker(self._heldout, self._model.config.codebook)
        amax = {t.name.removesuffix(".input"): t.absmax for t in found.tensors if t.name.endswith(".input")}
        return Analyzed(model=summarize(found), ranking=summarize(ranker.distributions), ranking_auc=ranker.auc, input_amax=amax)

    def table(self, input_amax: dict[str, float]) -> FidelityTable:
        systems = packed_systems(self._fp32, PRECISIONS, input_amax)
        fp16 = PackedSource(self._model, "fp16", {})
        again = run_packed(self._fp32, fp16, "fp16, another batch", max(1, self._batch_size // 2 - 1))
        assert self._few.targets_n3 is not None
        return fidelity_table(self._size, "pytorch", systems, self._fp32.reference, self._few.targets_n3, [(systems[0], again)])

    def layers(self, input_amax: dict[str, float]) -> Layers:
        probe = self._probe(input_amax, _PROBE_REQUESTS, _PROBE_PATHS)
        found = tuple(sensitivity(probe, precision) for precision in ("fp8-static", "fp8-paper"))
        return Layers(sensitivity=found, mixed=tuple(search(probe, each) for each in found))

    def stress(self, input_amax: dict[str, float]) -> Stress:
        probe = self._probe(input_amax, _STRESS_REQUESTS, _STRESS_PATHS)
        return measure_stress(probe._replace(model=self._model.cpu()), self._scoring.first(_STRESS_REQUESTS))

    def _probe(self, input_amax: dict[str, float], requests: int, paths: int) -> Probe:
        return make_probe(self._fp32.model, self._few, self._fp32.reference, input_amax, requests, paths, self._batch_size)


def _finished_training(folders: ReferenceFolders) -> dict[str, Any]:
    training: dict[str, Any] = read_json(folders.figures) if folders.figures.exists() else {"finished": False}
    if not training["finished"]:
        hint = "run `onerec-trt dev train-reference` with the same size, seed and state until it says finished"
        raise ArtifactError("this reference is not trained to the end", where=str(folders.state), hint=hint)
    return training


def _requests(folders: ReferenceFolders, split: str, model: OneRec) -> Requests:
    return read_requests(request_file(folders.data, split), model.config, need_targets=True)
