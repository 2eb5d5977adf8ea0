"""The validate stage: run every gate on what was exported, or on the plans built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import to_json
from pydantic import BaseModel

from ..calibration.quantized import open_quantized
from ..calibration.scoring import read_reference as read_modelopt_reference
from ..calibration.stage import Calibration
from ..core.artifacts import Files, read_model, sha256, write_json
from ..core.errors import ArtifactError, RequestError
from ..core.graph_io import GraphIO, Role
from ..core.recipe import MIN_REQUESTS, ExportOptions, ValidateOptions
from ..core.records import RECORD_NAME, Record, read_record
from ..core.sources import Sources
from ..core.stages import Stage
from ..export.serving import ScoringModel, ServingModel, serving_model
from ..export.stage import SCORING_FILE, SERVING_FILE
from ..models.checkpoint import open_checkpoint
from ..models.device import compute_device, on_compute_device, release_memory
from ..models.requests import Requests, read_requests, request_files
from ..runtime.item_index import ItemIndex
from ..runtime.machine import this_machine
from ..runtime.plan_record import inspect_plan
from ..runtime.verdict import GateResult, write_verdict
from .backends import EngineName, UnderTest, onnxruntime_under_test, tensorrt_under_test
from .beam_parity import BeamMetrics
from .catalogue import open_index
from .confidence_interval import error_ratios
from .e4m3 import e4m3_self_test
from .fp16_underflow import underflow_gate
from .fp32_reference import Reference, ReferenceJob, heldout_requests, read_reference
from .gates import Gate
from .item_validity import ItemValidity
from .judgement import Case, Judgement, judge
from .lineage import require_lineage
from .measure import Yardstick, engine_outputs, quantized_outputs
from .operator_parity import OperatorResult, operator_gates, operator_results, weight_gate
from .outputs import Floats, outputs_file, write_outputs
from .request_overlap import overlap_warnings
from .requests_feed import run_all
from .scoring_parity import ScoringErrors, log_probability_errors, ratio_gates
from .serving_parity import ServingErrors
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
        export: What was exported.
        catalogue: The items that found ones are looked up in. Default: they are not.
    """

    recipe: str
    calibration: Calibration
    reference: ReferenceJob
    options: ValidateOptions
    fused: bool
    export: ExportOptions
    catalogue: Path | None = None


class Validation(BaseModel):
    """Everything the gates of one recipe found.

    `plans`: SHA-256 of the plans that took part. They run at the largest batch of every profile that takes the longest context;
    `beams`, `scoring`, `serving` and `validity` are those of the last; without a catalogue there is no `validity`.
    `unseen`: numbers of the profiles of a plan that no batch took. `outputs`: the file of what the last gave.
    `judged`: SHA-256 of the records of the quantized checkpoint and of the exported graphs, by the name of their folder.
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
    validity: ItemValidity | None = None
    fp16_noise: float
    operators: list[OperatorResult]
    plans: dict[str, str] = {}
    unseen: dict[str, list[int]] = {}
    outputs: str = ""
    judged: dict[str, str] = {}
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
    if job.catalogue is not None:
        folders["catalogue"] = job.catalogue

    @cache
    def index() -> ItemIndex | None:
        if job.catalogue is None:
            return None
        config = open_checkpoint(job.calibration.checkpoint, job.calibration.key_map).config
        return open_index(job.catalogue, config.codebook, job.export.category_classes)

    def under_test() -> UnderTest:
        if plans is None:
            return onnxruntime_under_test(exported.folder, job.options.batch_size, index)
        return tensorrt_under_test(exported.folder, plans, job.calibration.precision, job.reference.max_context, index)

    def inputs() -> dict[str, Path | Files]:
        read = {**folders, "heldout": request_files(job.reference.heldout)}
        return read if plans is None else read | {name: plans / name for name in under_test().plans}

    def body(temporary: Path) -> dict[str, Any]:
        return _validate(job, calibrated.folder, exported.folder, read_reference(reference.folder), under_test(), index(), temporary)

    def verdicts(record: Record) -> None:
        if plans is not None:
            _write_verdicts(read_validation(folder), record, plans)

    return Stage(
        name=VALIDATE["onnxruntime" if plans is None else "tensorrt"],
        folder=folder,
        sources=SOURCES,
        tools=("torch", "onnxruntime", "polygraphy"),
        options=job.options.model_dump(mode="json", exclude={"onnxruntime"}) | {"recipe": job.recipe, "fused_operators": job.fused},
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


def read_validation(folder: Path, of: Sequence[Path] = ()) -> Validation:
    """Read and verify a validation result.

    Args:
        folder: Of the validate stage.
        of: Folders of the artifacts that it must have judged. Default: any.

    Raises:
        ArtifactError: It is missing, was changed, or judged other artifacts.
    """
    read_record(folder)
    validation = read_model(folder / VALIDATION_FILE, Validation, hint="run its stage again")
    for judged in of:
        if validation.judged.get(judged.name) != sha256(judged / RECORD_NAME):
            problem = f"this validation, of the recipe '{validation.recipe}', judged other artifacts than those in {judged.name}/"
            hint = f"run `onerec-trt validate --engine {validation.engine}` with this recipe"
            raise ArtifactError(problem, where=str(folder / VALIDATION_FILE), hint=hint)
    return validation


def _validate(
    job: ValidationJob, quantized: Path, exported: Path, fp32: Reference, under_test: UnderTest, index: ItemIndex | None, folder: Path
) -> dict[str, Any]:
    """Run every gate and write the files of the stage; gives what its record says of the result."""
    source = open_quantized(quantized)
    e4m3_self_test()
    requests = heldout_requests(job.reference)
    _require_enough(requests, job.reference.heldout)
    serving = serving_model(source, job.export).eval()
    graph = onnx.load(exported / SERVING_FILE, load_external_data=False)
    model = open_checkpoint(job.calibration.checkpoint, job.calibration.key_map).on(compute_device()).load_model()

    calibration = read_requests(
        job.calibration.requests, model.config, max_context=job.calibration.max_context, limit=job.calibration.options.max_requests
    )
    few = requests.select(slice(job.options.operator_requests))
    operators = operator_results(serving, graph, few, job.options.operator_requests, fused=job.fused, index=index)
    batch_size = job.options.batch_size
    beside = Yardstick(requests, model, fp32, quantized_outputs(serving, requests, fp32, batch_size, index), batch_size)
    scoring = ScoringModel(serving.decoder, serving.widths[-1]).eval()
    release_memory()
    judgements = _judge_trials(job, under_test, beside, index, scoring.io, folder)
    last = judgements[-1]
    gates = [
        source_gate(job.recipe, job.calibration, source),
        *_file_gates(job.recipe, serving, scoring, exported),
        *operator_gates(job.recipe, operators),
        *_packed_gates(job, quantized, serving, calibration),
        underflow_gate(job.recipe, job.options, model, source, requests, fp32, last.scoring.quantized),
        *(gate for judgement in judgements for gate in judgement.gates),
    ]
    validation = Validation(
        recipe=job.recipe,
        precision=job.calibration.precision,
        engine=under_test.engine,
        requests=len(requests),
        gates=gates,
        beams=last.beams,
        scoring=last.scoring,
        serving=last.serving,
        validity=last.validity,
        fp16_noise=fp32.fp16_noise,
        operators=operators,
        plans={name: plan.sha256 for name, plan in under_test.plans.items()},
        unseen=under_test.unseen,
        outputs=outputs_file(under_test.trials[-1].label),
        judged={judged.name: sha256(judged / RECORD_NAME) for judged in (quantized, exported)},
        warnings=overlap_warnings(requests, calibration),
    )
    write_json(folder / VALIDATION_FILE, validation.model_dump(mode="json"))
    return {"passed": validation.passed, "gates": len(gates), "warnings": validation.warnings}


def _judge_trials(
    job: ValidationJob, under_test: UnderTest, beside: Yardstick, index: ItemIndex | None, scoring: GraphIO, folder: Path
) -> list[Judgement]:
    """Run the engine in each way, keep what it gave in the folder, and judge it."""
    judgements = []
    for trial in under_test.trials:
        outputs = engine_outputs(trial, under_test.engine, beside)
        write_outputs(outputs, folder / outputs_file(trial.label))
        case = Case(outputs, beside.fp32, beside.requests, index, follows=job.export.items == "catalogue")
        judgements.append(judge(case, job.recipe, job.options, under_test.engine, trial.label, beside.model.config.codebook))
        if trial is under_test.trials[0]:
            _save_for_polygraphy(outputs.scoring_nW3[: trial.batch_size], scoring, under_test.engine, folder)
    return judgements


def _require_enough(requests: Requests, path: Path) -> None:
    if len(requests) < MIN_REQUESTS:
        hint = "give more held-out requests; a few hundred varied ones tell a fault from chance"
        raise RequestError(
            f"{len(requests)} held-out requests are too few to judge by; {MIN_REQUESTS} are the least", where=str(path), hint=hint
        )


def _save_for_polygraphy(scoring_BW3: Floats, io: GraphIO, engine: str, folder: Path) -> None:
    """First batch of the scoring graph, for `polygraphy run scoring.onnx --trt --load-outputs ...` on a GPU machine."""
    results = RunResults()
    results.append((engine, [IterationResult({io.name(Role.TOKEN_SCORES): scoring_BW3}, runner_name=engine)]))
    (folder / POLYGRAPHY_FILE).write_text(to_json(results), encoding="utf-8")  # not results.save: it writes a line to standard output


def _file_gates(recipe: str, serving: ServingModel, scoring: ScoringModel, exported: Path) -> list[Gate]:
    """Structure and weights of both files."""
    graphs = {
        "weights in the file": onnx.load(exported / SERVING_FILE, load_external_data=False),
        "weights in scoring.onnx": onnx.load(exported / SCORING_FILE, load_external_data=False),
    }
    weights = [weight_gate(recipe, serving, graph, exported, name) for name, graph in graphs.items()]
    return [*trace_gates(recipe, serving, scoring, exported), *weights]


def _packed_gates(job: ValidationJob, quantized: Path, serving: ServingModel, calibration: Requests) -> list[Gate]:
    """The packed model may be no further from FP32 than ModelOpt's fake-quantized model is, on calibration requests.

    ModelOpt quantizes linears alone, so attention is in FP16 here.
    """
    known = read_modelopt_reference(quantized)
    requests = calibration.select(known.requests.numpy())
    with on_compute_device(serving), serving.decoder.context.in_fp16():
        runner = ScoringTorchRunner(serving.decoder, known.sids.shape[1])
        packed = run_all(runner, requests, job.options.batch_size, "packed model", known.sids.numpy())[Role.TOKEN_SCORES]
    fp32: Floats = known.log_probs_fp32.numpy()
    scores: tuple[Floats, Floats] = (packed.astype(np.float32), known.log_probs.numpy())
    packed_n, modelopt_n = (log_probability_errors(each, fp32) for each in scores)
    errors, limit = (float(packed_n.mean()), float(modelopt_n.mean())), job.options.scoring_error_ratio
    return ratio_gates("packed model beside ModelOpt", job.recipe, error_ratios(packed_n, modelopt_n), *errors, limit)
