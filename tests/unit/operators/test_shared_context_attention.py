"""SharedContextAttention: ContextAttention with its keys for values, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import torch

LENGTHS = torch.tensor([7, 0, 4])
NAME = "SharedContextAttention"


def inputs_of(half):
    valid = (torch.arange(7) < LENGTHS[:, None])[:, None, :, None]
    return half(3 * 5, 4 * 32), torch.where(valid, half(3, 2, 7, 32), 0), LENGTHS


def test_is_context_attention_with_the_keys_for_values(both, half):
    query, context, lengths = inputs_of(half)
    shared, separate = both(NAME, query, context, lengths, rows=5), both("ContextAttention", query, context, context, lengths, rows=5)
    for actual, expected in zip((*shared.torch, *shared.onnx), (*separate.torch, *separate.onnx), strict=True):
        assert np.array_equal(actual, expected)
        assert actual.any()


def test_both_implementations_agree_and_an_empty_context_gives_zero(hold, half):
    outcome = hold(NAME, *inputs_of(half), rows=5)
    for attended in (*outcome.torch, *outcome.onnx):
        assert not attended[5:10].any()


def test_a_bad_row_stays_alone(apart, half):
    query, *rest = inputs_of(half)
    bad = query.clone()
    bad[2, 3] = float("nan")
    apart(NAME, (query, *rest), (bad, *rest), 2, rows=5)
