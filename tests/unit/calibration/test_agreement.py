"""Quantized weights against ModelOpt's: equal up to values that lie halfway between two codes, and nothing else passes."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.agreement import WeightAgreement
from onerec_trt.calibration.modelopt_api import insert_quantizers
from onerec_trt.calibration.ptq import read_amax
from onerec_trt.calibration.quantize import QuantizedWeight, quantize_weight, weight_amax
from onerec_trt.calibration.targets import Target, quantized_targets
from onerec_trt.core.errors import CalibrationError
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.onerec import OneRec
from torch import Tensor


def _weight(model: OneRec, target: Target) -> Tensor:
    weight = model.get_submodule(target.name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _targets(config: OneRecConfig, precision: str) -> list[Target]:
    """Weights can be compared without calibrated activations, so static targets serve too."""
    return quantized_targets(config, precision)


@pytest.mark.parametrize("precision", ["fp8-row", "fp8-paper", "fp8-row-block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_weights_agree(model: OneRec, config: OneRecConfig, precision: str, dtype: torch.dtype) -> None:
    """BF16 weights lie exactly on rounding boundaries quite often, so some of their codes really differ."""
    model.to(dtype).float()
    insert_quantizers(model, precision, None)
    targets = _targets(config, precision)
    amax, agreement = read_amax(model, targets), WeightAgreement(model)
    for target in targets:
        weight = _weight(model, target)
        assert torch.equal(amax[target.name].weight, weight_amax(weight, target.granularity))
        agreement.compare(target, weight, quantize_weight(weight, target.granularity, amax[target.name].weight))
    result = agreement.result()
    assert result.linears == len(targets)
    assert result.codes == sum(outputs * inputs for outputs, inputs in (target.shape for target in targets))
    share = result.differing_codes / result.codes
    assert share < 1e-4 if dtype is torch.float32 else 0 < share < 0.01


@pytest.mark.parametrize("fault", ["one code", "one scale", "another amax"])
def test_a_single_wrong_value_is_found(model: OneRec, config: OneRecConfig, fault: str) -> None:
    insert_quantizers(model, "fp8-paper", None)
    target = _targets(config, "fp8-paper")[-1]
    weight = _weight(model, target)
    amax = weight_amax(weight, target.granularity)
    quantized = quantize_weight(weight, target.granularity, amax * 1.01 if fault == "another amax" else amax)
    codes, scale = quantized.codes.clone(), quantized.scale.clone()
    if fault == "one code":
        raw = codes.view(torch.uint8)
        raw[3, 7] = raw[3, 7] ^ 1  # the neighboring code
    if fault == "one scale":
        scale[0, 1] *= 1 + 1e-4
    with pytest.raises(CalibrationError, match="differ from ModelOpt's") as error:
        WeightAgreement(model).compare(target, weight, QuantizedWeight(codes, scale, quantized.shape))
    assert error.value.where == target.name


@pytest.mark.parametrize("precision", ["fp8-row", "fp8-paper", "fp8-row-block"])
def test_rows_of_zeros_and_of_tiny_values_agree(model: OneRec, config: OneRecConfig, precision: str) -> None:
    """ModelOpt takes an amax below 2^-24 for zero, we do not; such values are lost in FP16 anyway."""
    target = _targets(config, precision)[-1]
    weight = _weight(model, target)
    weight[5] = 0
    weight[6] *= 1e-9
    if precision == "fp8-paper":
        weight *= 1e-9  # whole blocks
    insert_quantizers(model, precision, None)
    quantized = quantize_weight(weight, target.granularity, read_amax(model, [target])[target.name].weight)
    WeightAgreement(model).compare(target, weight, quantized)
    assert bool(quantized.dequantized().isfinite().all())
    assert not quantized.dequantized()[5].any()
