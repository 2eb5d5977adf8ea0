"""The validate stage: run what was exported and hold it against every gate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import to_json
from pydantic import BaseModel

from ..calibration.forced import read_reference as read_modelopt_reference
from ..calibration.quantised import open_quantised
from ..core.artefacts import read_json, write_json
from ..core.recipe import Recipe
from ..core.records import Record, read_record, run_stage
from ..export.serving import ForcedModel, ServingModel
from ..export.stage import FORCED_FILE, SERVING_FILE
from ..models.beam_search import path_log_probabilities
from ..models.checkpoint import open_checkpoint
from ..models.onerec import OneRec
from ..models.requests import Requests, read_requests
from .beam_parity import BeamMetrics, beam_gates, beam_metrics
from .chain import require_chain
from .forced_parity import ForcedErrors, forced_errors, forced_gates
from .gates import Gate, gate
from .onnxruntime_runner import OnnxRuntimeRunner, reference_self_test
from .operator_parity import OperatorResult, operator_gates, operator_results, weight_gate
from .reference import Reference, heldout_requests, make_reference
from .requests_feed import feeds, run_all
from .torch_runner import TorchRunner

VALIDATION_FILE = "validation.json"
POLYGRAPHY_FILE = "forced-outputs.json"


class Validation(BaseModel):
    """Everything the gates of one recipe found."""

    recipe: str
    precision: str
    engine: str
    requests: int
    gates: list[Gate]
    beams: BeamMetrics
    forced: ForcedErrors
    fp16_noise: float
    operators: list[OperatorResult]

    @property
    def passed(self) -> bool:
        return all(g.passed for g in self.gates)


def validate(recipe: Recipe, quantised: Path, exported: Path, reference: Path, folder: Path) -> Record:
    """Run every gate with ONNX Runtime as the engine, or read the result when nothing changed.

    A failed gate does not raise here: the result is kept for the report; `gates.require` stops the run.

    Args:
        recipe: Names checkpoint, held-out requests and thresholds.
        quantised: Folder of the calibrate stage.
        exported: Folder of the export stage.
        reference: Folder the FP32 reference is kept in; shared by all recipes of one checkpoint.
        folder: Where validation.json goes.

    Raises:
        ArtefactError: An artefact does not match its record, or was made from other inputs than the recipe's.
        CheckpointError, RequestError: An input is malformed.
        GateError: The reference runner's own self-test failed.
    """
    require_chain(recipe, quantised, exported)
    fp32 = make_reference(recipe, reference)
    read = {"quantised": quantised, "exported": exported, "reference": reference, "heldout": recipe.heldout}
    options = recipe.validation.model_dump(mode="json") | {"recipe": recipe.name}
    body = partial(_write, recipe, quantised, exported, fp32)
    return run_stage("validate", folder, read=read, options=options, tools=("torch", "onnxruntime", "polygraphy"), body=body)


def read_validation(folder: Path) -> Validation:
    """Read and verify a validation result.

    Raises:
        ArtefactError: It is missing or was changed.
    """
    read_record(folder)
    return Validation.model_validate(read_json(folder / VALIDATION_FILE))


def _write(recipe: Recipe, quantised: Path, exported: Path, fp32: Reference, folder: Path) -> dict[str, Any]:
    source = open_quantised(quantised)
    reference_self_test()
    requests = heldout_requests(recipe)
    serving = ServingModel(source, recipe.export.beam).eval()
    graph = onnx.load(exported / SERVING_FILE, load_external_data=False)
    checkpoint = open_checkpoint(recipe.checkpoint, recipe.key_map)
    model = checkpoint.load_model()

    few = requests.select(slice(recipe.validation.operator_requests))
    operators = operator_results(serving, graph, few, recipe.validation.operator_requests)
    errors = _forced(recipe, exported, serving, requests, fp32, folder)
    beams = _beams(recipe, exported, model, requests, fp32)
    gates = [
        weight_gate(recipe.name, serving, graph, exported),
        *operator_gates(recipe.name, operators),
        _frozen_gate(recipe, quantised, serving, model),
        *forced_gates(recipe.name, errors, recipe.validation.forced_error_ratio),
        *beam_gates(recipe.name, beams, recipe.validation),
    ]
    validation = Validation(
        recipe=recipe.name,
        precision=recipe.precision,
        engine="onnxruntime",
        requests=len(requests),
        gates=gates,
        beams=beams,
        forced=errors,
        fp16_noise=fp32.fp16_noise,
        operators=operators,
    )
    write_json(folder / VALIDATION_FILE, validation.model_dump(mode="json"))
    return {"passed": validation.passed, "gates": len(gates)}


def _forced(recipe: Recipe, exported: Path, serving: ServingModel, requests: Requests, fp32: Reference, folder: Path) -> ForcedErrors:
    batch_size, paths = recipe.validation.batch_size, fp32.sids_nW3
    quantised = TorchRunner(ForcedModel(serving.decoder, paths.shape[1]), ("log_probabilities",))
    engine = OnnxRuntimeRunner(exported / FORCED_FILE)
    expected = run_all(quantised, requests, batch_size, "forced, quantised PyTorch", paths)["log_probabilities"]
    actual = run_all(engine, requests, batch_size, "forced, ONNX Runtime", paths)["log_probabilities"]
    _save_for_polygraphy(engine, next(feeds(requests, batch_size, paths)), folder)
    return forced_errors(_floats(actual), _floats(expected), fp32)


def _save_for_polygraphy(engine: OnnxRuntimeRunner, inputs: dict[str, Any], folder: Path) -> None:
    """First batch of the forced form, for `polygraphy run forced.onnx --trt --load-outputs ...` on a GPU machine."""
    results = RunResults()
    results.append(("onnxruntime", [IterationResult(engine(inputs), runner_name="onnxruntime")]))
    (folder / POLYGRAPHY_FILE).write_text(to_json(results))  # not results.save: it writes a line to standard output


def _beams(recipe: Recipe, exported: Path, model: OneRec, requests: Requests, fp32: Reference) -> BeamMetrics:
    engine = OnnxRuntimeRunner(exported / SERVING_FILE)
    sids_nW3 = run_all(engine, requests, recipe.validation.batch_size, "beams, ONNX Runtime")["sids"].astype(np.int64)
    assert requests.targets_n3 is not None
    k = min(recipe.validation.top_k, sids_nW3.shape[1])
    regret = fp32.scores_nW[:, :k].mean() - _fp32_scores(model, requests, sids_nW3[:, :k], recipe.validation.batch_size).mean()
    return beam_metrics(sids_nW3, float(regret), requests.targets_n3, fp32, recipe.validation)


def _fp32_scores(model: OneRec, requests: Requests, sids_nk3: NDArray[np.int64], batch_size: int) -> NDArray[np.float32]:
    """The FP32 model's score [n, k] of the items an engine found."""
    scores, first = [], 0
    for batch in requests.batches(batch_size):
        paths = torch.from_numpy(sids_nk3[first : first + len(batch.lengths_B3)])
        scores.append(path_log_probabilities(model, batch.features_BSF, batch.lengths_B3, paths).sum(-1).numpy())
        first += len(paths)
    return np.concatenate(scores)


def _frozen_gate(recipe: Recipe, quantised: Path, serving: ServingModel, model: OneRec) -> Gate:
    """The frozen model may be no further from FP32 than ModelOpt's fake-quantised model is, on calibration requests."""
    known = read_modelopt_reference(quantised)
    requests = read_requests(recipe.requests, model.config, max_context=recipe.max_context).select(known.requests.numpy())
    runner = TorchRunner(ForcedModel(serving.decoder, known.sids.shape[1]), ("log_probabilities",))
    frozen = run_all(runner, requests, recipe.validation.batch_size, "frozen model", known.sids.numpy())["log_probabilities"]
    fp32, modelopt = known.log_probs_fp32.numpy(), known.log_probs.numpy()
    error, allowed = np.abs(frozen - fp32).mean(), np.abs(modelopt - fp32).mean()
    ratio = float(error / allowed) if allowed > 0 else float("inf")
    limit = recipe.validation.forced_error_ratio
    return gate("frozen model beside ModelOpt", recipe.name, ratio, "<=", limit, f"{error:.3g} nat against {allowed:.3g}")


def _floats(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return array.astype(np.float32)
