"""Experts that saw too few tokens."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.coverage import coverage, judge_coverage
from onerec_trt.core.errors import CalibrationError

ROUTED = {"blocks.1.ffn": torch.tensor([5, 40, 0]), "blocks.2.ffn": torch.tensor([32, 33, 34])}


def test_counts_are_listed_by_layer() -> None:
    assert [(part.layer, part.routed_tokens) for part in coverage(ROUTED)] == [("blocks.1.ffn", (5, 40, 0)), ("blocks.2.ffn", (32, 33, 34))]


def test_warning_names_layer_expert_and_count() -> None:
    (warning,) = judge_coverage(coverage(ROUTED), 32, refuse=False)
    assert warning == "blocks.1.ffn: experts below 32 naturally routed tokens: 0 (5 tokens), 2 (0 tokens)"


def test_static_scales_refuse_and_say_what_to_do() -> None:
    with pytest.raises(CalibrationError) as error:
        judge_coverage(coverage(ROUTED), 32, refuse=True)
    assert "blocks.1.ffn" in error.value.where
    assert "2 (0 tokens)" in error.value.where
    assert "max_requests" in error.value.hint


def test_enough_tokens_pass() -> None:
    assert judge_coverage(coverage(ROUTED), 0, refuse=True) == []
    assert judge_coverage(coverage({}), 100, refuse=True) == []
