"""The stage `calibrate`: checkpoint and calibration requests in, quantized checkpoint and quantization.json out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.artifacts import Files
from ..core.errors import CalibrationError
from ..core.precision import Granularity
from ..core.recipe import CalibrationOptions, PrecisionName
from ..core.sources import Sources
from ..core.stages import Stage
from ..core.text_files import require_no_folder
from ..models.catalogue_index import INDEX_SOURCES
from ..models.checkpoint import Checkpoint, checkpoint_files, expected_shapes, open_checkpoint
from ..models.device import compute_device, release_memory
from ..models.key_map import read_key_map
from ..models.layout import block_of
from ..models.requests import read_requests, request_files
from ..operators import fp8
from .agreement import WeightAgreement
from .coverage import coverage, judge_coverage
from .fp16_loss import underflow_warnings
from .observation import Observation
from .ptq import Calibrated, calibrate_model
from .quantize import Amax, quantize
from .saved_state import SavedState
from .score_error import ScoreErrors
from .scoring import REFERENCE_REQUESTS, Reference, ScoringRequests, with_paths, write_reference
from .statistics import (
    HISTOGRAM_LOG10_EDGES,
    QuantizationError,
    activation_cast,
    check_fp16_error,
    check_fp16_range,
    outliers,
    quantization_error,
)
from .summary import Checks, QuantizationSummary, TensorSummary, summarize_layers, unquantized, write_summary
from .targets import Target, quantized_targets
from .weights import WeightWatcher

_BYTES_PER_WEIGHT = 8  # of GPU memory: half of it for the model in FP32, half for what is kept of its activations and gradients
SOURCES = Sources(("core", *INDEX_SOURCES, "models", "operators/fp8.py", "calibration"))


@dataclass(frozen=True)
class Calibration:
    """What is quantized, and how.

    Args:
        precision: Which linears become FP8, and with which scales.
        max_context: Longest context; a longer request is refused.
        options: Which requests are used, and what is asked of them.
        checkpoint: Folder with config.json and safetensors.
        requests: Parquet file of calibration requests; targets are used as paths where present.
        key_map: YAML file that says how the checkpoint names its tensors. Default: as this package does.
        keep_fp16: Patterns of layers that stay in FP16. Default: none.
    """

    precision: PrecisionName
    max_context: int
    options: CalibrationOptions
    checkpoint: Path
    requests: Path
    key_map: Path | None = None
    keep_fp16: tuple[str, ...] = ()

    def inputs(self) -> dict[str, Path | Files]:
        """The files that are read, by name.

        Raises:
            CalibrationError, CheckpointError, RequestError: A folder is not what is wanted there.
        """
        for name, path in (("key map", self.key_map), ("saved state", self.options.saved_state)):
            if path is not None:
                require_no_folder(path, name=name, error=CalibrationError)
        optional = {"key_map": self.key_map, "saved_state": self.options.saved_state}
        given = {name: path for name, path in optional.items() if path is not None}
        return {"checkpoint": checkpoint_files(self.checkpoint), "requests": request_files(self.requests), **given}


def calibrate_stage(job: Calibration, folder: Path) -> Stage:
    """The stage that quantizes a checkpoint into `folder`.

    Running it raises:
        CheckpointError, RequestError: An input is malformed.
        RecipeError: A pattern of layers to keep in FP16 matches none, or nothing is left in FP8.
        CalibrationError: Calibration saw too little, or values that FP16 or FP8 cannot hold.
    """
    options = job.options.model_dump(mode="json", exclude={"saved_state"})
    return Stage(
        name="calibrate",
        folder=folder,
        sources=SOURCES,
        tools=("torch", "nvidia-modelopt", "safetensors"),
        options={"precision": job.precision, "keep_fp16": list(job.keep_fp16), "max_context": job.max_context, **options},
        inputs=job.inputs,
        body=partial(_write, job),
        after=lambda _: release_memory(),
    )


def _write(job: Calibration, folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(job.checkpoint, job.key_map)
    weights = sum(map(math.prod, expected_shapes(checkpoint.config).values()))
    checkpoint = checkpoint.on(device := compute_device(weights * _BYTES_PER_WEIGHT))
    targets = quantized_targets(checkpoint.config, job.precision, job.keep_fp16)
    imported = imported_amax(job, checkpoint, targets)
    requests = read_requests(job.requests, checkpoint.config, max_context=job.max_context, limit=job.options.max_requests)
    model = checkpoint.load_model()
    scoring = with_paths(model, requests, job.options.batch_size)
    log_probs_fp32 = scoring.first(REFERENCE_REQUESTS).log_probabilities(model)
    errors = ScoreErrors(model, scoring)

    calibrated = calibrate_model(model, job.precision, scoring, imported, job.keep_fp16)
    experts = coverage(calibrated.observation.routed)
    if imported is None:
        static = {block_of(each.name) for each in targets if each.kind == "expert" and each.granularity is Granularity.TENSOR}
        unsafe = tuple(layer for layer in experts if block_of(layer.layer) in static)
        judge_coverage(unsafe, job.options.min_routed_tokens, refuse=True)
    warnings = [*checkpoint.unread, *judge_coverage(experts, job.options.min_routed_tokens, refuse=False)]
    warnings += _range_warnings(calibrated.observation) + _outlier_warnings(calibrated.observation, targets)
    reference = _reference(calibrated, scoring, log_probs_fp32)
    write_reference(folder, reference)

    agreement = WeightAgreement(model) if targets else None
    casts = {target.name: activation_cast(target.granularity, calibrated.amax[target.name].input) for target in targets}
    watcher = WeightWatcher(checkpoint.config, targets, agreement, errors, casts)
    warnings += quantize(checkpoint, targets, lambda target, _: calibrated.amax[target.name], folder, watcher)
    warnings += underflow_warnings(watcher.fp16_losses)
    summary = QuantizationSummary(
        precision=job.precision,
        keep_fp16=job.keep_fp16,
        layers=summarize_layers(targets, _input_scales(calibrated.amax)),
        unquantized=unquantized(checkpoint.config, targets),
        experts=experts,
        weights=tuple(watcher.summaries),
        fp16_losses=tuple(watcher.fp16_losses),
        activations=_activation_summaries(calibrated, targets),
        histogram_log10_edges=HISTOGRAM_LOG10_EDGES,
        warnings=tuple(warnings),
        checks=Checks(
            reference="modelopt" if targets else "torch-fp16",
            modelopt_scoring_error=reference.mean_error,
            requests=len(reference.requests),
            weights=agreement.result() if agreement else None,
        ),
    )
    write_summary(folder, summary)
    return {
        "requests": len(scoring),
        "quantized_linears": len(targets),
        "unquantized_linears": len(summary.unquantized),
        "modelopt_scoring_error": reference.mean_error,
        "device": device.type,
        "warnings": warnings,
    }


def imported_amax(job: Calibration, checkpoint: Checkpoint, targets: list[Target]) -> dict[str, Amax] | None:
    """Amax values of `calibration.saved_state`, in which linears go by the checkpoint's own names; None without one."""
    if job.options.saved_state is None:
        return None
    if not targets:
        where, hint = str(job.options.saved_state), "leave calibration.saved_state out, or choose an FP8 precision"
        raise CalibrationError(f"{job.precision} quantizes nothing, so a saved state has no use", where=where, hint=hint)
    theirs = read_key_map(job.key_map).apply(checkpoint.names) if job.key_map else {name: name for name in checkpoint.names}
    modules = {target.name: theirs[f"{target.name}.weight"].removesuffix(".weight") for target in targets}
    state = SavedState(job.options.saved_state)
    amax = state.amax(targets, modules)
    state.check_weights(checkpoint, targets, modules)
    return amax


def _reference(calibrated: Calibrated, scoring: ScoringRequests, log_probs_fp32: torch.Tensor) -> Reference:
    some = scoring.first(REFERENCE_REQUESTS)
    log_probs = some.log_probabilities(calibrated.model)
    return Reference(torch.arange(len(some)), some.sids_n13, log_probs, log_probs_fp32)


def _range_warnings(observation: Observation) -> list[str]:
    """About both ends of FP16: values that come close to its largest, and tensors that are mostly subnormal in it."""
    checked = [check_fp16_range(name, statistics.absmax) for name, statistics in observation.activations.items()]
    underflow = [check_fp16_error(name, statistics.fp16_error) for name, statistics in observation.activations.items()]
    return [warning for warning in checked + underflow if warning]


def _outlier_warnings(observation: Observation, targets: list[Target]) -> list[str]:
    """Outliers among what is quantized."""
    inputs = {f"{target.group}.input" for target in targets}
    found = ((name, outliers(seen.absmax, seen.absp99)) for name, seen in observation.activations.items() if name in inputs)
    return [f"{name} has outliers: {words}; `onerec-trt analyze` says which scale it needs" for name, words in found if words]


def _activation_summaries(calibrated: Calibrated, targets: list[Target]) -> tuple[TensorSummary, ...]:
    by_input = {f"{target.group}.input": target for target in targets}
    return tuple(
        statistics.summary(_input_error(calibrated, by_input.get(name), statistics.sample.rows))
        for name, statistics in calibrated.observation.activations.items()
    )


def _input_error(calibrated: Calibrated, target: Target | None, sample: torch.Tensor | None) -> QuantizationError | None:
    if target is None:
        return None
    if sample is None:
        return QuantizationError(None, None)
    cast = activation_cast(target.granularity, calibrated.amax[target.name].input)
    return quantization_error(sample, cast(sample))


def _input_scales(amax: Mapping[str, Amax]) -> dict[str, float]:
    return {name: float(fp8.scale_of(torch.tensor(value.input))) for name, value in amax.items() if value.input is not None}
