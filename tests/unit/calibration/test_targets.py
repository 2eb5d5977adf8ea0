"""The list of quantized linears against the model itself."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.targets import linear_names, quantized_targets, targets_of
from onerec_trt.core.precision import Granularity
from onerec_trt.models.config import SIZES, OneRecConfig
from onerec_trt.models.onerec import OneRec
from torch import nn


@pytest.mark.parametrize("size", ["0.1B", "4B-A0.5B"])
def test_targets_are_all_linears_under_blocks_except_routers(size: str) -> None:
    with torch.device("meta"):
        linears = {name: module for name, module in OneRec(SIZES[size]).named_modules() if isinstance(module, nn.Linear)}
    expected = {name for name in linears if name.startswith("blocks.") and not name.endswith(".router")}
    targets = targets_of(SIZES[size], "fp8-row")
    assert {target.name for target in targets} == expected
    assert len(targets) == len(expected)
    assert all(tuple(linears[target.name].weight.shape) == target.shape for target in targets)
    assert linear_names(SIZES[size]) == list(linears)


def test_paper_precision_uses_blocks_for_experts_only(config: OneRecConfig) -> None:
    granularity = {target.name: target.granularity for target in quantized_targets(config, "fp8-paper")}
    assert granularity["blocks.0.ffn.up"] is Granularity.ROW
    assert granularity["blocks.2.self_attention.v"] is Granularity.ROW
    assert granularity["blocks.1.ffn.experts.3.down"] is Granularity.BLOCK
    assert granularity["blocks.1.ffn.shared.0.gate"] is Granularity.BLOCK


def test_row_block_precision_has_row_weights_and_blocks_in_the_input_of_down(config: OneRecConfig) -> None:
    targets = {target.name: target for target in quantized_targets(config, "fp8-row-block")}
    assert targets["blocks.0.ffn.down"].granularity is Granularity.ROW
    assert targets["blocks.1.ffn.experts.3.up"].granularity is Granularity.ROW
    down = targets["blocks.1.ffn.experts.3.down"]
    assert (down.granularity, down.stored_shape, down.weight_scale_shape) == (Granularity.ROW_BLOCK, (96, 160), (96,))


def test_fp16_quantizes_nothing(config: OneRecConfig) -> None:
    assert quantized_targets(config, "fp16") == []
    assert len(targets_of(config, "fp16")) == len(quantized_targets(config, "fp8-static"))


def test_groups_join_the_linears_that_read_one_tensor(config: OneRecConfig) -> None:
    groups: dict[str, list[str]] = {}
    for target in targets_of(config, "fp8-static"):
        groups.setdefault(target.group, []).append(target.name.removeprefix("blocks.1."))
    assert groups["blocks.1.self_attention.qkv"] == ["self_attention.q", "self_attention.k", "self_attention.v"]
    experts = ["ffn.experts.0", "ffn.experts.1", "ffn.experts.2", "ffn.experts.3", "ffn.shared.0"]
    assert groups["blocks.1.ffn.gate_up"] == [f"{expert}.{part}" for expert in experts for part in ("gate", "up")]
    assert groups["blocks.1.ffn.experts.2.down"] == ["ffn.experts.2.down"]


def test_block_shapes_are_rounded_up(config: OneRecConfig) -> None:
    targets = {target.name: target for target in targets_of(config, "fp8-paper")}
    down, query = targets["blocks.1.ffn.experts.0.down"], targets["blocks.1.cross_attention.q"]
    assert (down.shape, down.stored_shape, down.weight_scale_shape) == ((96, 160), (96, 256), (1, 2))
    assert (query.shape, query.stored_shape, query.weight_scale_shape) == ((96, 96), (96, 96), (96,))
