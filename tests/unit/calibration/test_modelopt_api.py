"""What ModelOpt really quantizes, and that its casts are ours."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration import modelopt_api
from onerec_trt.calibration.modelopt_api import amax_of, enabled_quantizers, insert_quantizers, quantizer
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.onerec import OneRec
from onerec_trt.operators import fp8
from torch import nn


def _feed(model: nn.Module) -> None:
    torch.manual_seed(1)
    assert isinstance(model, OneRec)
    for module in model.modules():
        if hasattr(module, "calibrating"):
            module.calibrating = True
    with torch.no_grad():
        model(torch.randn(2, 5, 48), torch.tensor([[2, 2, 1], [1, 1, 1]]), torch.tensor([[[3, 4]], [[5, 6]]]))


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-row", "fp8-paper", "fp8-row-block"])
def test_exactly_the_targets_are_quantized(model: OneRec, config: OneRecConfig, precision: str) -> None:
    insert_quantizers(model, precision, _feed)
    names = {target.name for target in quantized_targets(config, precision)}
    assert enabled_quantizers(model) == {f"{name}.{role}_quantizer" for name in names for role in ("weight", "input")}


def test_layers_that_stay_in_fp16_have_no_quantizers(model: OneRec, config: OneRecConfig) -> None:
    keep = ("cross.q", "blocks.2.ffn.*")
    insert_quantizers(model, "fp8-row", _feed, keep)
    names = {target.name for target in quantized_targets(config, "fp8-row", keep)}
    assert "blocks.1.ffn.experts.3.down" in names
    assert not names & {"blocks.2.ffn.experts.3.down", "blocks.2.ffn.shared.0.gate", "blocks.0.cross_attention.q"}
    assert enabled_quantizers(model) == {f"{name}.{role}_quantizer" for name in names for role in ("weight", "input")}


def test_inserting_prints_nothing(model: OneRec, capsys: pytest.CaptureFixture[str]) -> None:
    insert_quantizers(model, "fp8-row", _feed)
    assert capsys.readouterr() == ("", "")


def test_static_amax_is_the_largest_input_seen(model: OneRec) -> None:
    seen: list[float] = []
    model.blocks[0].ffn.down.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].abs().max())))  # type: ignore[union-attr, operator]
    insert_quantizers(model, "fp8-static", _feed)
    amax = amax_of(model, "blocks.0.ffn.down", "input")
    assert amax is not None
    assert float(amax) == max(seen)


@pytest.mark.parametrize("precision", ["fp8-row", "fp8-paper", "fp8-row-block"])
def test_dynamic_inputs_have_no_amax(model: OneRec, config: OneRecConfig, precision: str) -> None:
    insert_quantizers(model, precision, _feed)
    assert all(amax_of(model, target.name, "input") is None for target in quantized_targets(config, precision))


def test_activations_are_cast_as_the_reference_casts_them(model: OneRec) -> None:
    insert_quantizers(model, "fp8-paper", _feed)
    torch.manual_seed(2)
    x = torch.randn(7, 160) * torch.logspace(-3, 3, 7)[:, None]
    blocks = quantizer(model, "blocks.1.ffn.experts.0.down", "input")(x)
    torch.testing.assert_close(blocks, fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(x))[:, :160], rtol=0, atol=0)
    x_4d = torch.randn(2, 1, 3, 96)
    codes, scale = fp8.quantize_rows(x_4d)
    torch.testing.assert_close(quantizer(model, "blocks.1.cross_attention.q", "input")(x_4d), codes.float() * scale, rtol=1e-6, atol=0)


def test_no_preset_is_used_that_skips_layers_by_name(config: OneRecConfig) -> None:
    entries = modelopt_api.modelopt_config(config, "fp8-static")["quant_cfg"]
    assert entries[0] == {"quantizer_name": "*", "enable": False}
    assert all(entry["quantizer_name"].startswith("blocks.") and "enable" not in entry for entry in entries[1:])
