"""Static scales for random weights: every group gets one, and none of the values they were made from saturates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.errors import CalibrationError
from onerec_trt.core.precision import E4M3_MAX
from onerec_trt.export.serving import ServingModel
from onerec_trt.models.config import MoeConfig, parse_config
from onerec_trt.operators.operator import recorded_calls
from onerec_trt.tools.bench.random_scales import input_amax

CONFIG = parse_config({"d_model": 32, "n_layers": 2, "n_heads": 2, "d_head": 16, "embed_dim": 4, "codebook": 32, "ffn_hidden": 64})


def test_every_group_gets_a_scale_that_saturates_nothing(tmp_path: Path) -> None:
    random_quantized_checkpoint(CONFIG, "fp8-row", tmp_path / "row", 0)
    amax = input_amax(open_quantized(tmp_path / "row"), seed=1)
    assert amax.keys() == {target.group for target in quantized_targets(CONFIG, "fp8-static")}
    assert all(value > 0 for value in amax.values())

    random_quantized_checkpoint(CONFIG, "fp8-static", tmp_path / "static", 0, amax)
    model = ServingModel(open_quantized(tmp_path / "static"), (8, 8, 8)).eval()
    features = torch.randn(2, 16, CONFIG.feature_width, generator=torch.Generator().manual_seed(1)).half()
    with torch.no_grad(), recorded_calls() as calls:
        model(features, torch.tensor([[5, 5, 5]] * 2))
    codes = [call.outputs[0].float().abs() for call in calls if call.outputs[0].dtype == torch.float8_e4m3fn]
    assert len(codes) == 6 * CONFIG.n_layers * 3
    saturated = sum(float((c == E4M3_MAX).float().sum()) for c in codes) / sum(c.numel() for c in codes)
    assert saturated < 0.01
    assert max(float(c.max()) for c in codes) > E4M3_MAX / 2


def test_experts_are_refused(tmp_path: Path) -> None:
    config = CONFIG.with_changes(moe=MoeConfig(experts=2, top_k=1, hidden=16, dense_layers=1))
    random_quantized_checkpoint(config, "fp8-row", tmp_path / "row", 0)
    with pytest.raises(CalibrationError, match="with experts"):
        input_amax(open_quantized(tmp_path / "row"), seed=1)
