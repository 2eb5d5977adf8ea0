"""Everything that is measured on a trained reference: the fidelity table in every precision, layers, distributions, stress.

It is measured part by part, and what is there so far is a valid result: the caller gets it after each part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from .measurement_parts import MeasurementParts
from .metrics import Sids
from .mixed import MixedRecipe, search
from .packed_source import PackedSource, input_amax, observe
from .packed_systems import Fp32Run, run_fp32, run_packed
from .ranker import train_ranker
from .reference_data import request_file
from .reference_run import ReferenceFolders, reference_folders
from .references import reference_model
from .sensitivity import Probe, Sensitivity, make_probe, sensitivity
from .stress_measurement import Stress, measure_stress
from .table import FidelityTable, bars, fidelity_table

# Precisions whose layers are measured: the fastest first, the one with most kinds last.
LAYERS_OF = ("fp8-row-block", "fp8-static", "fp8-paper-attention")
_CALIBRATION_BATCH = 64
# All in one batch: it has the rows of four requests with 512 beams, and a GPU waits for launches.
_PROBE_REQUESTS, _PROBE_PATHS = 128, 16
_STRESS_REQUESTS, _STRESS_PATHS = 48, 8


class InputAmax(BaseModel):
    """AbsMax of what each group of linears reads, by the group's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: dict[str, float]


class Analyzed(BaseModel):
    """Distributions in few numbers, the ranking model's beside them, and the AbsMax of what each group of linears reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Summary
    ranking: Summary
    ranking_auc: float
    input_amax: dict[str, float]


class LayersOf(BaseModel):
    """What the layers of one precision cost, and the mixed recipe that follows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sensitivity: Sensitivity
    mixed: MixedRecipe


class Layers(BaseModel):
    """What layers cost, by precision, and the mixed recipes that follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sensitivity: tuple[Sensitivity, ...]
    mixed: tuple[MixedRecipe, ...]


class ReferenceMeasurement(BaseModel):
    """What was measured on one trained reference. A part that is None, or a precision without a row, was not measured.

    `training`: as in its training.json. `keep_fp16`: layers that every FP8 recipe of `table` and `engine_table` keeps in FP16.
    `device`: what packed models ran on; `table` and `bars` are theirs. `layers`: with everything quantized. `mixed`: the table of the mixed
    recipe that the first of `layers` leads to. `engine_table`: the table of recipes that went through the pipeline, as their engine
    answered, with bars of its own. `environment`: machine, driver, versions and commit of the last call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any]
    keep_fp16: tuple[str, ...] = ()
    device: str
    table: FidelityTable | None = None
    bars: tuple[Gate, ...] = ()
    analysis: Analyzed | None = None
    layers: Layers | None = None
    stress: Stress | None = None
    mixed: FidelityTable | None = None
    engine_table: FidelityTable | None = None
    engine_bars: tuple[Gate, ...] = ()
    environment: dict[str, Any] = {}


@dataclass(frozen=True)
class MeasurementJob:
    """What is measured, and how long.

    Args:
        size, seed, root: As `train_reference` had them.
        requests: Held-out requests, the first ones.
        batch_size: Requests at once.
        device: Where PyTorch computes.
        deadline: On the clock of `time.monotonic`; no part begins after it.
        say: Gets a line of progress now and then.
    """

    size: str
    seed: int
    root: Path
    requests: int
    batch_size: int
    device: torch.device
    deadline: float
    say: Callable[[str], None]


def measure_reference(job: MeasurementJob) -> Iterator[ReferenceMeasurement]:
    """Measure a reference whose training is finished: what is known of it, again after each part.

    Each part is kept as soon as it is done; the next call goes on.

    Raises:
        ArtifactError: The training is not finished.
        RecipeError: There is no such reference.
    """
    folders = reference_folders(job.size, job.seed, job.root)
    training = _finished_training(folders)
    name = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "CPU"
    keeps = reference_model(job.size).keep_fp16
    folder = folders.state / f"measured-{training['checkpoint_sha256'][:16]}-{job.requests}-{name.replace(' ', '-')}"
    parts = MeasurementParts(folder, job.deadline, job.say)
    subject = _Subject(job, folders, parts)
    found = ReferenceMeasurement(training=training, keep_fp16=keeps, device=name)
    amax = parts.get("input-amax", InputAmax, subject.input_amax)
    if amax is None:
        yield found
        return
    for table in _tables(parts, subject, amax, keeps):
        yield (found := found.model_copy(update={"table": table, "bars": tuple(bars(table))}))
    for layers in _layers(parts, subject, amax):
        yield (found := found.model_copy(update={"layers": layers}))
    yield (found := found.model_copy(update={"analysis": parts.get("analysis", Analyzed, partial(subject.analyzed, amax))}))
    yield (found := found.model_copy(update={"stress": parts.get("stress", Stress, partial(subject.stress, amax))}))
    if found.layers is not None:
        recipe = found.layers.mixed[0]
        yield found.model_copy(update={"mixed": parts.get("mixed", FidelityTable, partial(subject.mixed, recipe, amax))})


def _tables(parts: MeasurementParts, subject: _Subject, amax: InputAmax, keeps: Sequence[str]) -> Iterator[FidelityTable]:
    """The table with one more recipe each time; the row of what was run again comes last. Another list of layers makes parts of its own."""
    mixed = f"-{hashlib.sha256(' '.join(keeps).encode()).hexdigest()[:8]}" if keeps else ""
    first = parts.get("table-fp16", FidelityTable, subject.noise_floor)
    if first is None:
        return
    rows = [first.rows[0]]
    yield first
    for precision in (name for name, scheme in PRECISIONS.items() if scheme.is_quantized):
        one = parts.get(f"table-{precision}{mixed}", FidelityTable, partial(subject.quantized, precision, precision, amax, keeps))
        if one is None:
            return
        rows += one.rows
        yield first.model_copy(update={"rows": (*rows, *first.rows[1:])})


def _layers(parts: MeasurementParts, subject: _Subject, amax: InputAmax) -> Iterator[Layers]:
    """What layers cost, with one more precision each time."""
    found: list[LayersOf] = []
    for precision in LAYERS_OF:
        one = parts.get(f"layers-{precision}", LayersOf, partial(subject.layers, precision, amax))
        if one is None:
            return
        found.append(one)
        yield Layers(sensitivity=tuple(each.sensitivity for each in found), mixed=tuple(each.mixed for each in found))


class _Subject:
    """A trained reference on its device, its requests, and FP32's answers; each is made, or read, when it is first needed."""

    def __init__(self, job: MeasurementJob, folders: ReferenceFolders, parts: MeasurementParts) -> None:
        self._job, self._folders, self._parts = job, folders, parts

    @cached_property
    def _model(self) -> OneRec:
        return open_checkpoint(self._folders.checkpoint).load_model().to(self._job.device)

    @cached_property
    def _heldout(self) -> Requests:
        return self._requests("heldout")

    @cached_property
    def _fp32(self) -> Fp32Run:
        few, beam, size = self._heldout.select(slice(self._job.requests)), reference_model(self._job.size).beam, self._job.batch_size
        reference = self._parts.reference(lambda: run_fp32(self._model, few, beam, size).reference)
        return Fp32Run(self._model, few, reference, beam, size)

    def input_amax(self) -> InputAmax:
        scoring = with_paths(self._model, self._requests("calibration"), _CALIBRATION_BATCH)
        return InputAmax(groups=input_amax(observe(self._model, scoring)))

    def noise_floor(self) -> FidelityTable:
        """FP16 beside FP32, and FP16 in batches of another size beside it."""
        source = PackedSource(self._model, "fp16", {})
        system = run_packed(self._fp32, source, "fp16")
        again = run_packed(self._fp32, source, "fp16, another batch", max(1, self._job.batch_size // 2 - 1))
        return fidelity_table(self._job.size, "pytorch", [system], self._fp32.reference, self._targets, [(system, again)])

    def quantized(self, name: str, precision: str, amax: InputAmax, keep_fp16: Sequence[str]) -> FidelityTable:
        """One precision beside FP32, with some layers in FP16."""
        system = run_packed(self._fp32, PackedSource(self._model, precision, amax.groups, keep_fp16), name)
        return fidelity_table(self._job.size, "pytorch", [system], self._fp32.reference, self._targets)

    def mixed(self, recipe: MixedRecipe, amax: InputAmax) -> FidelityTable:
        """What a mixed recipe gives."""
        return self.quantized(f"{recipe.precision}, {len(recipe.kept)} layers in FP16", recipe.precision, amax, recipe.kept)

    def layers(self, precision: str, amax: InputAmax) -> LayersOf:
        probe = self._probe(amax, _PROBE_REQUESTS, _PROBE_PATHS)
        found = sensitivity(probe, precision)
        return LayersOf(sensitivity=found, mixed=search(probe, found))

    def analyzed(self, amax: InputAmax) -> Analyzed:
        scoring = with_paths(self._model, self._requests("calibration"), _CALIBRATION_BATCH)
        found, ranker = analyze_model(self._model, scoring, self._job.size), train_ranker(self._heldout, self._model.config.codebook)
        ranking = summarize(ranker.distributions)
        return Analyzed(model=summarize(found), ranking=ranking, ranking_auc=ranker.auc, input_amax=amax.groups)

    def stress(self, amax: InputAmax) -> Stress:
        scoring = with_paths(self._model, self._requests("calibration"), _CALIBRATION_BATCH)
        return measure_stress(self._probe(amax, _STRESS_REQUESTS, _STRESS_PATHS), scoring.first(_STRESS_REQUESTS))

    @property
    def _targets(self) -> Sids:
        assert self._fp32.requests.targets_n3 is not None
        return self._fp32.requests.targets_n3

    def _probe(self, amax: InputAmax, requests: int, paths: int) -> Probe:
        fp32 = self._fp32
        return make_probe(fp32.model, fp32.requests, fp32.reference, amax.groups, requests, paths, batch_size=requests)

    def _requests(self, split: str) -> Requests:
        return read_requests(request_file(self._folders.data, split), self._model.config, need_targets=True)


def _finished_training(folders: ReferenceFolders) -> dict[str, Any]:
    training: dict[str, Any] = read_json(folders.figures) if folders.figures.exists() else {"finished": False}
    if not training["finished"]:
        hint = "run `onerec-trt dev reference` with the same size, seed and state until it says finished"
        raise ArtifactError("this reference is not trained to the end", where=str(folders.state), hint=hint)
    return training
