"""Quantized checkpoints of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.errors import CalibrationError
from onerec_trt.core.recipe import PrecisionName
from onerec_trt.models.config import OneRecConfig


@pytest.mark.parametrize("precision", ["fp16", "fp8-row", "fp8-paper", "fp8-row-block"])
def test_it_opens_like_a_calibrated_one(config: OneRecConfig, tmp_path: Path, precision: PrecisionName) -> None:
    random_quantized_checkpoint(config, precision, tmp_path / "model", 7)
    opened = open_quantized(tmp_path / "model")
    assert opened.precision == precision
    heads = opened.tensor("heads.0.weight").float()
    assert float(heads.std()) == pytest.approx(0.02, rel=0.05)
    assert bool((opened.tensor("blocks.1.ffn_norm.weight") == 1).all())
    assert not opened.tensor("blocks.1.ffn.selection_bias").any()
    if precision != "fp16":
        codes, scale = opened.tensor("blocks.0.ffn.down.weight").float(), opened.tensor("blocks.0.ffn.down.weight_scale")
        assert float((codes * scale[:, None]).std()) == pytest.approx(0.02, rel=0.05)


def test_the_seed_decides(config: OneRecConfig, tmp_path: Path) -> None:
    records = [random_quantized_checkpoint(config, "fp8-row", tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2))]
    assert records[0].wrote == records[1].wrote
    changed = {name for name in records[0].wrote if records[0].wrote[name] != records[2].wrote[name]}
    assert changed == {f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)}


def test_blocks_have_different_weights(config: OneRecConfig, tmp_path: Path) -> None:
    random_quantized_checkpoint(config, "fp16", tmp_path / "model", 0)
    opened = open_quantized(tmp_path / "model")
    assert not torch.equal(opened.tensor("blocks.1.self_attention.q.weight"), opened.tensor("blocks.2.self_attention.q.weight"))


def test_static_scales_cannot_be_invented(config: OneRecConfig, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="needs calibrated activation scales"):
        random_quantized_checkpoint(config, "fp8-static", tmp_path / "model", 0)
    assert not (tmp_path / "model").exists()


def test_static_scales_can_be_given(config: OneRecConfig, tmp_path: Path) -> None:
    groups = sorted({target.group for target in quantized_targets(config, "fp8-static")})
    random_quantized_checkpoint(config, "fp8-static", tmp_path / "model", 0, {group: 448.0 * (n + 1) for n, group in enumerate(groups)})
    opened = open_quantized(tmp_path / "model")
    for target in quantized_targets(config, "fp8-static"):
        assert float(opened.tensor(f"{target.name}.input_scale")) == groups.index(target.group) + 1
