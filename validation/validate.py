"""The validate stage: run every gate on what was exported, or on the plans built from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import to_json
from pydantic import BaseModel

from ..calibration.quantized import open_quantized
from ..calibration.scoring import read_reference as read_modelopt_reference
from ..calibration.stage import Calibration
from ..core.artifacts import Files, read_json, write_json
from ..core.errors import RequestError
from ..core.graph_io import Role
from ..core.recipe import MIN_REQUESTS, ValidateOptions
from ..core.records import Record, read_record
from ..core.sources import Sources
from ..core.stages import Stage
from ..export.serving import ScoringModel, ServingModel
from ..export.stage import SCORING_FILE, SERVING_FILE
from ..models.beam_search import path_log_probabilities
from ..models.checkpoint import open_checkpoint
from ..models.onerec import OneRec
from ..models.requests import Requests, read_requests, request_files
from ..runtime.machine import this_machine
from ..runtime.plan_record import inspect_plan
from ..runtime.verdict import GateResult, write_verdict
from .backends import EngineName, Trial, UnderTest, onnxruntime_under_test, tensorrt_under_test
from .beam_parity import BeamMetrics, beam_gates, beam_metrics
from .e4m3 import e4m3_self_test
from .engine_outputs import EngineOutputs, write_outputs
from .fp16_underflow import underflow_gate
from .fp32_reference import Reference, ReferenceJob, heldout_requests, read_reference
from .gates import Gate, gate
from .lineage import require_lineage
from .operator_parity import OperatorResult, operator_gates, operator_results, weight_gate
from .request_overlap import overlap_warnings
from .requests_feed import feeds, run_all
from .scoring_parity import ScoringErrors, scoring_errors, scoring_gates
from .serving_parity import Found, ServingErrors, in_range, serving_errors, serving_gates
from .source_parity import source_gate
from .torch_runner import ScoringTorchRunner
from .trace_parity import trace_gates

VALIDATION_FILE, POLYGRAPHY_FILE = "validation.json", "scoring-outputs.json"
VALIDATE: dict[EngineName, str] = {"onnxruntime": "validate", "tensorrt": "validate-tensorrt"}  # the stage of each engine
ON_GPU_FOLDER = "validated-tensorrt"  # beside the folder of plans
SOURCES = Sources(
    ("core", "runtime", "models", "operators", "calibration", "export", "builders/fusions", "builders/functions.py", "validation"),
    without=("operators/kernels", "operators/launch"),  # in a plan already, whose hash is an input
)


@dataclass(frozen=True)
class ValidationJob:
    """What is judged, and by which thresholds.

    Args:
        recipe: Its name, as gates have it.
        calibration: How the quantized checkpoint was made.
        reference: What the FP32 model was asked.
        options: Thresholds, and how many requests they hold for.
        fused: Whether the operators that fusions of a build make are judged, too.
    """

    recipe: str
    calibration: Calibration
    reference: ReferenceJob
    options: ValidateOptions
    fused: bool


class Validation(BaseModel):
    """Everything the gates of one recipe found.

    `plans`: SHA-256 of the plans that took part. They run at the largest batch of every profile that takes the longest context;
    `beams`, `scoring` and `serving` are those of the last. `unseen`: numbers of the profiles of a plan that no batch took.
    `warnings`: what makes the gates say less than they seem to.
    """

    recipe: str
    precision: str
    engine: str
    requests: int
    gates: list[Gate]
    beams: BeamMetrics
    scoring: ScoringErrors
    serving: ServingErrors
    fp16_noise: float
    operators: list[OperatorResult]
    plans: dict[str, str] = {}
    unseen: dict[str, list[int]] = {}
    warnings: list[str] = []

    @property
    def passed(self) -> bool:
        return all(g.passed for g in self.gates)

    @property
    def marked_gates(self) -> list[Gate]:
        """The gates with the engine in their names, beside those of another engine."""
        return [gate.model_copy(update={"name": f"{self.engine}: {gate.name}"}) for gate in self.gates]


def validate_stage(
    job: ValidationJob, calibrated: Stage, exported: Stage, reference: Stage, folder: Path, plans: Path | None = None
) -> Stage:
    """The stage that runs every gate and writes validation.json into `folder`, and beside each plan that took part its verdict.

    A failed gate does not raise here: the result is kept for the report; `gates.require` stops the run.

    Args:
        job: What is judged, and by which thresholds.
        calibrated, exported: Stages whose results are judged; they are refused where they are not what these stages make now.
        reference: Makes the FP32 reference, which all recipes of one checkpoint share.
        folder: Replaced as a whole.
        plans: Folder of the build stage, whose plans of TensorRT are the engine then. Default: ONNX Runtime is.

    Running it raises:
        ArtifactError: An artifact does not match its record, or was made from other inputs than the recipe's.
        CheckpointError, RequestError: An input is malformed.
        GateError: The reference runner's own self-test failed.
        GpuError: There is no GPU for the plans, or its memory is exhausted.
        MissingExtraError: TensorRT is not installed.
    """
    folders = {"quantized_checkpoint": calibrated.folder, "exported": exported.folder, "reference": reference.folder}

    def under_test() -> UnderTest:
        if plans is None:
            return onnxruntime_under_test(exported.folder, job.options.batch_size)
        return tensorrt_under_test(exported.folder, plans, job.calibration.precision, job.reference.max_context)

    def inputs() -> dict[str, Path | Files]:
        read = {**folders, "heldout": request_files(job.reference.heldout)}
        return read if plans is None else read | {name: plans / name for name in under_test().plans}

    def body(temporary: Path) -> dict[str, Any]:
        return _write(job, calibrated.folder, exported.folder, read_reference(reference.folder), under_test(), temporary)

    def verdicts(record: Record) -> None:
        if plans is not None:
            _write_verdicts(read_validation(folder), record, plans)

    return Stage(
        name=VALIDATE["onnxruntime" if plans is None else "tensorrt"],
        folder=folder,
        sources=SOURCES,
        tools=("torch", "onnxruntime", "polygraphy"),
        options=job.options.model_dump(mode="json") | {"recipe": job.recipe, "fused_operators": job.fused},
        inputs=inputs,
        body=body,
        machine=None if plans is None else lambda: asdict(this_machine("tensorrt")),
        check=lambda: require_lineage(calibrated, exported),
        needs=(reference,),
        after=verdicts,
    )


def _write_verdicts(validation: Validation, record: Record, plans: Path) -> None:
    """What the gates said, beside every plan that they ran on."""
    kept, machine = set(GateResult.model_fields), record.machine
    assert machine is not None
    gates = tuple(GateResult.model_validate(gate.model_dump(include=kept)) for gate in validation.gates)
    versions = record.tools | {machine["target"]: machine["library_version"], "driver": machine["driver"], "gpu": machine["gpu"]}
    for name in validation.plans:
        profiles = range(len(inspect_plan(plans / name).profiles))
        seen = tuple(number for number in profiles if number not in validation.unseen.get(name, []))
        write_verdict(plans / name, gates, seen, versions)


def read_validation(folder: Path) -> Validation:
    """Read and verify a validation result.

    Raises:
        ArtifactError: It is missing or was changed.
    """
    read_record(folder)
    return Validation.model_validate(read_json(folder / VALIDATION_FILE))


def _write(job: ValidationJob, quantized: Path, exported: Path, fp32: Reference, under_test: UnderTest, folder: Path) -> dict[str, Any]:
    source = open_quantized(quantized)
    e4m3_self_test()
    requests = heldout_requests(job.reference)
    _require_enough(requests, job.reference.heldout)
    serving = ServingModel(source, job.reference.beam).eval()
    graph = onnx.load(exported / SERVING_FILE, load_external_data=False)
    checkpoint = open_checkpoint(job.calibration.checkpoint, job.calibration.key_map)
    model = checkpoint.load_model()

    calibration = read_requests(
        job.calibration.requests, model.config, max_context=job.calibration.max_context, limit=job.calibration.options.max_requests
    )
    few = requests.select(slice(job.options.operator_requests))
    operators = operator_results(serving, graph, few, job.options.operator_requests, fused=job.fused)
    expected_nW3 = _quantized_scores(serving, requests, fp32, job.options.batch_size)
    outcomes = [_try(job, trial, under_test.engine, model, requests, expected_nW3, fp32) for trial in under_test.trials]
    _save_for_polygraphy(under_test, requests, fp32, folder)
    write_outputs(outcomes[-1].outputs, folder)
    gates = [
        source_gate(job.recipe, job.calibration, source),
        *_file_gates(job.recipe, serving, exported),
        *operator_gates(job.recipe, operators),
        _packed_gate(job, quantized, serving, calibration),
        underflow_gate(job.recipe, job.options, model, source, requests, fp32, outcomes[-1].scoring.quantized),
        *(gate for outcome in outcomes for gate in outcome.gates),
    ]
    validation = Validation(
        recipe=job.recipe,
        precision=job.calibration.precision,
        engine=under_test.engine,
        requests=len(requests),
        gates=gates,
        beams=outcomes[-1].beams,
        scoring=outcomes[-1].scoring,
        serving=outcomes[-1].serving,
        fp16_noise=fp32.fp16_noise,
        operators=operators,
        plans={name: plan.sha256 for name, plan in under_test.plans.items()},
        unseen=under_test.unseen,
        warnings=overlap_warnings(requests, calibration),
    )
    write_json(folder / VALIDATION_FILE, validation.model_dump(mode="json"))
    return {"passed": validation.passed, "gates": len(gates), "warnings": validation.warnings}


def _require_enough(requests: Requests, path: Path) -> None:
    if len(requests) < MIN_REQUESTS:
        hint = "give more held-out requests; a few hundred varied ones tell a fault from chance"
        raise RequestError(
            f"{len(requests)} held-out requests are too few to judge by; {MIN_REQUESTS} are the least", where=str(path), hint=hint
        )


def _file_gates(recipe: str, serving: ServingModel, exported: Path) -> list[Gate]:
    """Structure and weights of both files."""
    scoring = ScoringModel(serving.decoder, serving.widths[-1]).eval()
    graphs = {
        "weights in the file": onnx.load(exported / SERVING_FILE, load_external_data=False),
        "weights in scoring.onnx": onnx.load(exported / SCORING_FILE, load_external_data=False),
    }
    weights = [weight_gate(recipe, serving, graph, exported, name) for name, graph in graphs.items()]
    return [*trace_gates(recipe, serving, scoring, exported), *weights]


@dataclass(frozen=True)
class Outcome:
    """What one trial of an engine gave."""

    scoring: ScoringErrors
    serving: ServingErrors
    beams: BeamMetrics
    gates: list[Gate]
    outputs: EngineOutputs


def _try(
    job: ValidationJob, trial: Trial, engine: str, model: OneRec, requests: Requests, expected_nW3: NDArray[np.float32], fp32: Reference
) -> Outcome:
    """Both forms of an engine on all requests: along the FP32 model's paths, its own beams, and along these."""
    options, label = job.options, " ".join(filter(None, (engine, trial.label)))
    codebook = model.config.codebook
    scorer = trial.scoring()
    actual_nW3 = _floats(run_all(scorer, requests, trial.batch_size, f"scoring, {label}", fp32.sids_nW3)[Role.TOKEN_SCORES])
    errors = scoring_errors(actual_nW3, expected_nW3, fp32)
    outputs = run_all(trial.serving(), requests, trial.batch_size, f"beams, {label}")
    sids_nW3 = outputs[Role.FOUND_ITEMS].astype(np.int64)
    valid_nW3 = in_range(sids_nW3, codebook)
    own_nW3 = _floats(run_all(scorer, requests, trial.batch_size, f"scoring its beams, {label}", valid_nW3)[Role.TOKEN_SCORES])
    found = Found(sids_nW3, _floats(outputs[Role.ITEM_SCORES]), own_nW3)
    served = serving_errors(found, actual_nW3, fp32, codebook, requests.ids)
    assert requests.targets_n3 is not None
    fp32_scores_nW = _fp32_scores(model, requests, valid_nW3, options.batch_size)
    noise = float(np.abs(expected_nW3.sum(-1) - fp32.scores_nW).mean())
    beams = beam_metrics(sids_nW3, fp32_scores_nW, requests.targets_n3, fp32, options)
    gates = [
        *scoring_gates(job.recipe, errors, options.scoring_error_ratio),
        *serving_gates(job.recipe, served, engine),
        *beam_gates(job.recipe, beams, noise, options),
    ]
    if trial.label:
        gates = [gate.model_copy(update={"name": f"{gate.name}, {trial.label}"}) for gate in gates]
    return Outcome(errors, served, beams, gates, EngineOutputs(sids_nW3, fp32_scores_nW, actual_nW3))


def _quantized_scores(serving: ServingModel, requests: Requests, fp32: Reference, batch_size: int) -> NDArray[np.float32]:
    """Log-probabilities [n, W, 3] by the quantized PyTorch model along the FP32 model's paths."""
    runner = ScoringTorchRunner(serving.decoder, fp32.sids_nW3.shape[1])
    outputs = run_all(runner, requests, batch_size, "scoring, quantized PyTorch", fp32.sids_nW3)
    return _floats(outputs[Role.TOKEN_SCORES])


def _save_for_polygraphy(under_test: UnderTest, requests: Requests, fp32: Reference, folder: Path) -> None:
    """First batch of the scoring graph, for `polygraphy run scoring.onnx --trt --load-outputs ...` on a GPU machine."""
    trial = under_test.trials[0]
    runner = trial.scoring()
    inputs = next(feeds(runner.io, requests, trial.batch_size, fp32.sids_nW3))
    results = RunResults()
    results.append((under_test.engine, [IterationResult(runner(inputs), runner_name=under_test.engine)]))
    (folder / POLYGRAPHY_FILE).write_text(to_json(results), encoding="utf-8")  # not results.save: it writes a line to standard output


def _fp32_scores(model: OneRec, requests: Requests, sids_nk3: NDArray[np.int64], batch_size: int) -> NDArray[np.float32]:
    """The FP32 model's score [n, k] of the items an engine found."""
    scores, first = [], 0
    for batch in requests.batches(batch_size):
        paths = torch.from_numpy(sids_nk3[first : first + len(batch.lengths_B3)])
        scores.append(path_log_probabilities(model, batch.features_BSF, batch.lengths_B3, paths).sum(-1).numpy())
        first += len(paths)
    return np.concatenate(scores)


def _packed_gate(job: ValidationJob, quantized: Path, serving: ServingModel, calibration: Requests) -> Gate:
    """The packed model may be no further from FP32 than ModelOpt's fake-quantized model is, on calibration requests."""
    known = read_modelopt_reference(quantized)
    requests = calibration.select(known.requests.numpy())
    runner = ScoringTorchRunner(serving.decoder, known.sids.shape[1])
    packed = run_all(runner, requests, job.options.batch_size, "packed model", known.sids.numpy())[Role.TOKEN_SCORES]
    fp32, modelopt = known.log_probs_fp32.numpy(), known.log_probs.numpy()
    error, allowed = np.abs(packed - fp32).mean(), np.abs(modelopt - fp32).mean()
    ratio = float(error / allowed) if allowed > 0 else float("inf")
    limit = job.options.scoring_error_ratio
    return gate("packed model beside ModelOpt", job.recipe, ratio, "<=", limit, f"{error:.3g} nat against {allowed:.3g}")


def _floats(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return array.astype(np.float32)
