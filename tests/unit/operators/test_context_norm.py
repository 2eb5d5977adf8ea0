"""ContextNorm: RMSNorm per head, heads in front, padding zeroed whatever it held."""

from __future__ import annotations

import numpy as np
import pytest
import torch

EPSILON = 1e-6


@pytest.mark.parametrize(("tokens", "groups", "d_head"), [(1, 1, 32), (20, 2, 16), (37, 5, 128)])
def test_ragged_sizes(hold, half, tokens, groups, d_head):
    lengths = torch.tensor([tokens, 0, (tokens + 1) // 2])
    (norm,) = hold("ContextNorm", half(3, tokens, groups * d_head), torch.rand(d_head).half(), lengths, epsilon=EPSILON).torch
    assert norm.shape == (3, groups, tokens, d_head)
    assert norm[0].any()
    assert not norm[1].any()


def test_each_head_is_normed_alone(hold, half):
    chunk = half(1, 4, 2 * 64)
    chunk[..., 64:] *= 100
    (norm,) = hold("ContextNorm", chunk, torch.ones(64).half(), torch.tensor([4]), epsilon=EPSILON).torch
    assert (norm.astype("float32") ** 2).mean(-1) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 7.0])
def test_padding_changes_nothing(hold, half, padding):
    chunk, weight, lengths = half(2, 9, 32), torch.rand(16).half(), torch.tensor([4, 0])
    padded = chunk.clone()
    padded[0, 4:] = padding
    padded[1] = padding
    clean = hold("ContextNorm", chunk, weight, lengths, epsilon=EPSILON)
    dirty = hold("ContextNorm", padded, weight, lengths, epsilon=EPSILON)
    for before, after in zip((*clean.torch, *clean.onnx), (*dirty.torch, *dirty.onnx), strict=True):
        assert np.array_equal(before, after)


def test_fault_stays_in_its_request(apart, half):
    chunk, weight, lengths = half(3, 9, 32), torch.rand(16).half(), torch.tensor([9, 9, 3])
    bad = chunk.clone()
    bad[1, 2, 5] = float("nan")
    apart("ContextNorm", (chunk, weight, lengths), (bad, weight, lengths), 1, epsilon=EPSILON)
