"""Calibration in memory: static scales, what ModelOpt must have quantized, amax values that cannot be used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from onerec_trt.calibration.modelopt_api import insert_quantizers, quantizer, set_amax
from onerec_trt.calibration.ptq import calibrate_model, check_quantized, read_amax
from onerec_trt.calibration.quantize import Amax, quantize_weight
from onerec_trt.calibration.scoring import ScoringRequests, with_paths
from onerec_trt.calibration.statistics import activation_cast
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.difference import difference
from onerec_trt.core.errors import CalibrationError
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests


@pytest.fixture
def scoring(model: OneRec, requests: Requests) -> ScoringRequests:
    return with_paths(model, requests, 10)


def test_static_amax_is_that_of_the_tensor_read(model: OneRec, config: OneRecConfig, scoring: ScoringRequests) -> None:
    result = calibrate_model(model, "fp8-static", scoring)
    seen = result.observation.activations
    for target in quantized_targets(config, "fp8-static"):
        assert result.amax[target.name].input == pytest.approx(seen[f"{target.group}.input"].absmax, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-row", "fp8-paper"])
def test_every_linear_computes_what_its_frozen_form_says(
    model: OneRec, config: OneRecConfig, scoring: ScoringRequests, precision: str
) -> None:
    exact = {name: value.clone() for name, value in model.state_dict().items()}
    result = calibrate_model(model, precision, scoring)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    targets = quantized_targets(config, precision)
    for target in targets:
        hook = lambda _, inputs, output, name=target.name: seen.update({name: (inputs[0], output)})  # noqa: E731
        model.get_submodule(target.name).register_forward_hook(hook)
    scoring.run(model, "test")
    assert seen.keys() == {target.name for target in targets}
    for target in targets:
        x, theirs = seen[target.name]
        amax = result.amax[target.name]
        weight = quantize_weight(exact[f"{target.name}.weight"], target.granularity, amax.weight).dequantized()
        ours = F.linear(activation_cast(target.granularity, amax.input)(x), weight)
        assert difference(ours.numpy(), theirs.numpy()) < 1e-6, target.name  # one code of 15000 differing gives 1e-8


def test_nobody_keeps_a_calibrated_model(fresh_model: Callable[[], OneRec], scoring: ScoringRequests) -> None:
    """On a GPU it would take the memory that references and plans need."""
    model = fresh_model()
    kept, weight = weakref.ref(model), weakref.ref(next(model.parameters()))
    calibrate_model(model, "fp8-row", scoring)
    del model
    gc.collect()
    assert (kept(), weight()) == (None, None)


def test_a_dynamic_precision_has_no_input_amax(model: OneRec, scoring: ScoringRequests) -> None:
    assert {amax.input for amax in calibrate_model(model, "fp8-paper", scoring).amax.values()} == {None}


def test_statistics_do_not_depend_on_the_precision(
    config: OneRecConfig, scoring: ScoringRequests, model: OneRec, fresh_model: Callable[[], OneRec]
) -> None:
    fp16 = calibrate_model(model, "fp16", scoring).observation
    static = calibrate_model(fresh_model(), "fp8-static", scoring).observation
    assert [s.summary() for s in fp16.activations.values()] == [s.summary() for s in static.activations.values()]
    assert fp16.routed["blocks.1.ffn"].tolist() == static.routed["blocks.1.ffn"].tolist()


def test_fp16_gives_the_fp16_model_with_an_fp32_router(model: OneRec, scoring: ScoringRequests) -> None:
    exact = scoring.log_probabilities(model)
    half = calibrate_model(model, "fp16", scoring).model
    assert half.heads[0].weight.dtype is torch.float16
    assert half.blocks[1].ffn.router.weight.dtype is torch.float32  # type: ignore[union-attr]
    error = (scoring.log_probabilities(half) - exact).abs().max()
    assert 0 < error < 0.05


def test_imported_amax_is_used(model: OneRec, config: OneRecConfig, scoring: ScoringRequests, fresh_model: Callable[[], OneRec]) -> None:
    own = calibrate_model(model, "fp8-static", scoring)
    doubled = {name: Amax(amax.weight * 2, (amax.input or 0) * 2) for name, amax in own.amax.items()}
    imported = calibrate_model(fresh_model(), "fp8-static", scoring, doubled)
    for name, amax in imported.amax.items():
        assert torch.equal(amax.weight, doubled[name].weight)
        assert amax.input == doubled[name].input
    same = calibrate_model(fresh_model(), "fp8-static", scoring, own.amax)
    assert torch.equal(scoring.log_probabilities(same.model), scoring.log_probabilities(own.model))
    assert not torch.equal(scoring.log_probabilities(imported.model), scoring.log_probabilities(own.model))


def test_nan_activations_are_refused_by_name(model: OneRec, scoring: ScoringRequests) -> None:
    with torch.no_grad():
        model.blocks[1].self_norm.weight[3] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(CalibrationError, match="NaN") as error:
        calibrate_model(model, "fp8-static", scoring)
    assert error.value.where == "blocks.1.self_attention.qkv.input"


def test_a_layer_too_few_or_too_many_is_listed(model: OneRec, config: OneRecConfig) -> None:
    insert_quantizers(model, "fp8-row", None)
    targets = quantized_targets(config, "fp8-row")
    check_quantized(model, targets)
    quantizer(model, "blocks.0.ffn.up", "weight").disable()
    quantizer(model, "heads.1", "weight").enable()
    with pytest.raises(CalibrationError, match="other layers") as error:
        check_quantized(model, targets)
    assert "1 not quantized: blocks.0.ffn.up.weight_quantizer" in error.value.where
    assert "1 quantized though the precision says no: heads.1.weight_quantizer" in error.value.where


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-1.0, "negative"), (0.0, "zero")])
def test_unusable_amax_is_refused(model: OneRec, config: OneRecConfig, value: float, message: str) -> None:
    insert_quantizers(model, "fp8-static", None)
    targets = quantized_targets(config, "fp8-static")[:1]
    with pytest.raises(CalibrationError, match="missing") as error:
        read_amax(model, targets)
    assert error.value.where == "blocks.0.cross_attention.q.input_quantizer"
    set_amax(model, targets[0].name, "input", torch.tensor(value))
    with pytest.raises(CalibrationError, match=message):
        read_amax(model, targets)
