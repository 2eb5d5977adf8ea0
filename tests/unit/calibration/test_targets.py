"""What a precision quantizes: the list of linears against the model itself, and blocks whose attention to the context is in FP8."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.targets import fp8_attention, linear_names, quantized_products, quantized_targets, targets_of
from onerec_trt.core.errors import RecipeError
from onerec_trt.core.precision import Granularity, precision_of
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


def test_kept_layers_are_no_targets_and_groups_stay_whole(config: OneRecConfig) -> None:
    keep = ("self.qkv", "blocks.1.ffn.experts", "blocks.0.ffn.down")
    kept = {target.name for target in targets_of(config, "fp8-static")} - {t.name for t in quantized_targets(config, "fp8-static", keep)}
    assert {f"blocks.{block}.self_attention.{part}" for block in range(3) for part in "qkv"} < kept
    assert {f"blocks.1.ffn.experts.{expert}.{part}" for expert in range(4) for part in ("gate", "up", "down")} < kept
    assert len(kept) == 9 + 3 * 5 + 1
    for target in targets_of(config, "fp8-static", keep):
        assert (target.granularity is Granularity.NONE) == (target.name in kept)
    nodes = quantized_products(config, precision_of("fp8-static", keep))
    assert len(nodes) == len(quantized_products(config, precision_of("fp8-static"))) - 3 * (3 + 1 + 1)
    assert "step0.blocks.2.ffn.experts" in nodes


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["cross.o", "blocks.7.cross.o"], "'blocks.7.cross.o' is none of the layers"),
        (["heads.0"], "'heads.0' is none of the layers"),
        (["blocks.1.ffn.experts.0.down"], "is none of the layers"),  # experts of a block are one operator
        (["cross.*", "self.*", "ffn.*"], "leave no linear in FP8"),
    ],
)
def test_a_pattern_that_keeps_nothing_and_patterns_that_keep_all_are_refused(config: OneRecConfig, keep: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        targets_of(config, "fp8-row", keep)
    assert caught.value.where == "keep_fp16"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("keep", "blocks"),
    [
        ([], {0, 1, 2}),
        (["blocks.0.*"], {1, 2}),
        (["blocks.[01].cross.*"], {2}),
        (["cross.q", "self.*"], {0, 1, 2}),
        (["cross.attention"], set()),
    ],
)
def test_attention_to_the_context_is_kept_where_a_pattern_names_it(config: OneRecConfig, keep: list[str], blocks: set[int]) -> None:
    assert fp8_attention(config, precision_of("fp8-paper-attention", keep)) == blocks
    assert fp8_attention(config, precision_of("fp8-paper")) == frozenset()


def test_a_pattern_of_attention_alone_changes_no_linear(config: OneRecConfig) -> None:
    keep = ["blocks.0.cross.attention"]
    assert quantized_targets(config, "fp8-paper-attention", keep) == quantized_targets(config, "fp8-paper-attention")


def test_attention_is_a_layer_only_where_the_precision_has_it_in_fp8(config: OneRecConfig) -> None:
    with pytest.raises(RecipeError, match=r"'cross\.attention' is none of the layers") as caught:
        targets_of(config, "fp8-paper", ["cross.attention"])
    assert "cross.attention" not in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        targets_of(config, "fp8-paper-attention", ["cross.attn"])
    assert "cross.attention" in caught.value.hint
