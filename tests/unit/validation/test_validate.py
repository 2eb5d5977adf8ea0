"""The validate stage end to end: a good export passes, a corrupted one fails where it should, and the result is kept."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.artifacts import sha256
from onerec_trt.core.errors import ArtifactError, GateError, RecipeError, RequestError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.export.serving import ServingModel
from onerec_trt.export.stage import SERVING_FILE
from onerec_trt.export.weights import WEIGHTS_FILE
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.requests import read_requests
from onerec_trt.tools.pipeline import folders_of, run_stages, validation_job_of
from onerec_trt.validation import validate as validate_module
from onerec_trt.validation.validate import POLYGRAPHY_FILE, VALIDATION_FILE, Validation, _packed_gates, read_validation
from polygraphy.comparator import RunResults


@pytest.fixture
def recipe(world: Path) -> Recipe:
    """The finished FP16 run, to be validated again."""
    chosen = load_recipe(world / "fp16.yaml")
    return chosen.model_copy(update={"validation": chosen.validation.model_copy(update={"max_requests": 64})})


def run(recipe: Recipe) -> Validation:
    list(run_stages(recipe, ["validate"]))
    return read_validation(folders_of(recipe).validated)


def change_weights(recipe: Recipe, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite one FP16 weight of the exported file, and the record with it, as no tampering check could see."""
    folder = folders_of(recipe).exported
    graph = onnx.load(folder / SERVING_FILE, load_external_data=False)
    (initializer,) = [i for i in graph.graph.initializer if i.name == name]
    place = {entry.key: int(entry.value) for entry in initializer.external_data if entry.key != "location"}
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    part = slice(place["offset"], place["offset"] + place["length"])
    data[part] = change(np.frombuffer(bytes(data[part]), np.float16)).astype(np.float16).tobytes()
    (folder / WEIGHTS_FILE).write_bytes(data)
    record = json.loads((folder / "record.json").read_text())
    record["wrote"][WEIGHTS_FILE] = sha256(folder / WEIGHTS_FILE)
    (folder / "record.json").write_text(json.dumps(record))


def failed(validation: Validation) -> set[str]:
    return {gate.name for gate in validation.gates if not gate.passed}


@pytest.mark.parametrize("precision", ["fp16", "fp8-row"])
def test_the_finished_run_passed_every_kind_of_gate(finished_recipe: Callable[[str], Recipe], precision: str) -> None:
    validation = read_validation(folders_of(finished_recipe(precision)).validated)
    assert validation.passed, [gate.sentence() for gate in validation.gates if not gate.passed]
    names = {gate.name for gate in validation.gates}
    assert {"weights in the file", "packed model beside ModelOpt", "scoring log-probabilities", "scoring KL", "overlap@10"} <= names
    assert len([name for name in names if name.startswith("operator ")]) > 8
    assert {gate.recipe for gate in validation.gates} == {precision}
    assert (validation.engine, validation.requests, validation.precision) == ("onnxruntime", 64, precision)
    assert 0 < validation.beams.hit < 1


def test_fp8_is_further_from_fp32_than_fp16(finished_recipe: Callable[[str], Recipe]) -> None:
    errors = {p: read_validation(folders_of(finished_recipe(p)).validated).scoring.engine for p in ("fp16", "fp8-row")}
    assert errors["fp8-row"] > 5 * errors["fp16"] > 0


def test_perturbed_weights_fail_the_weight_gate_and_the_scoring_gates(recipe: Recipe) -> None:
    rng = np.random.default_rng(0)
    change_weights(recipe, "decoder.heads.1.weight", lambda w: w * (1 + 0.1 * rng.standard_normal(w.shape)))
    validation = run(recipe)
    assert {"weights in the file", "scoring log-probabilities", "scoring KL"} <= failed(validation)
    assert not any(name.startswith("operator ") for name in failed(validation))
    (gate,) = [gate for gate in validation.gates if gate.name == "weights in the file"]
    assert "decoder.heads.1.weight" in gate.detail


def test_a_packed_model_further_from_fp32_than_modelopts_fails(finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row")
    quantized = folders_of(recipe).calibrated
    serving = ServingModel(open_quantized(quantized), recipe.export.beam).eval()
    config = open_checkpoint(recipe.checkpoint, recipe.key_map).config
    calibration = read_requests(recipe.requests, config, max_context=recipe.max_context)
    assert all(gate.passed for gate in _packed_gates(validation_job_of(recipe), quantized, serving, calibration))
    head = serving.get_submodule("decoder.heads.2")
    head.weight = head.weight * 1.5
    assert not any(gate.passed for gate in _packed_gates(validation_job_of(recipe), quantized, serving, calibration))


def test_an_engine_that_gives_nan_fails_and_the_result_is_kept(recipe: Recipe) -> None:
    change_weights(recipe, "decoder.heads.2.weight", lambda w: np.full_like(w, np.nan))
    validation = run(recipe)
    assert not validation.passed
    assert math.isnan(validation.scoring.engine)
    assert {"scoring log-probabilities", "scoring KL"} <= failed(validation)


def test_a_reference_runner_that_cannot_be_trusted_stops_the_stage(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise GateError("ONNX Runtime rounds 1 values to E4M3 differently from ml_dtypes")

    monkeypatch.setattr(validate_module, "e4m3_self_test", fails)
    before = (folders_of(recipe).validated / VALIDATION_FILE).read_bytes()
    with pytest.raises(GateError, match="E4M3"):
        run(recipe)
    assert (folders_of(recipe).validated / VALIDATION_FILE).read_bytes() == before


def test_too_few_requests_are_refused_whichever_way_they_become_few(world: Path, make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"validate.max_requests: Input should be greater than or equal to 64"):
        load_recipe(make_recipe(world, "fp16", validate={"max_requests": 1}))
    recipe = load_recipe(make_recipe(world, "fp16", heldout="calibration.parquet"))  # 32 of them
    with pytest.raises(RequestError, match="32 held-out requests are too few to judge by; 64 are the least"):
        run(recipe)


def test_nothing_is_done_twice(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(world / "fp16.yaml")

    def refuse(*_: object) -> None:
        raise AssertionError("validated again")

    monkeypatch.setattr(validate_module, "_validate", refuse)
    assert run(recipe).passed


def test_a_changed_result_is_not_read(recipe: Recipe) -> None:
    path = folders_of(recipe).validated / VALIDATION_FILE
    path.write_text(path.read_text().replace('"passed": true', '"passed": false', 1))
    with pytest.raises(ArtifactError, match="does not match its record"):
        read_validation(folders_of(recipe).validated)


def test_without_an_export_nothing_is_measured(recipe: Recipe) -> None:
    shutil.rmtree(folders_of(recipe).exported)
    shutil.rmtree(folders_of(recipe).reference)
    with pytest.raises(ArtifactError, match="file not found"):
        run(recipe)
    assert not folders_of(recipe).reference.exists()


def test_outputs_for_a_gpu_machine_load_in_polygraphy(finished_recipe: Callable[[str], Recipe]) -> None:
    results = RunResults.load(str(folders_of(finished_recipe("fp16")).validated / POLYGRAPHY_FILE))
    ((name, (iteration,)),) = results
    assert name == "onnxruntime"
    assert np.isfinite(iteration["log_probabilities"]).all()
