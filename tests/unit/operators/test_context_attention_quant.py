"""{,Shared}ContextAttentionQuantTensor: exactly the composition of attention and quantization, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.registry import OPERATORS

SCALE = torch.tensor([0.004])
LENGTHS = torch.tensor([7, 0, 4])
NAMES = ("ContextAttentionQuantTensor", "SharedContextAttentionQuantTensor")


def inputs_of(name, half):
    """Query, keys and, if they are others, values, then lengths and scale."""
    valid = (torch.arange(7) < LENGTHS[:, None])[:, None, :, None]
    contexts = [torch.where(valid, half(3, 2, 7, 32), 0) for _ in range(1 if name.startswith("Shared") else 2)]
    return [half(3 * 5, 4 * 32), *contexts, LENGTHS, SCALE]


@pytest.mark.parametrize("name", NAMES)
def test_is_the_composition_of_its_parts(both, half, name):
    *inputs, scale = inputs_of(name, half)
    outcome, parts = both(name, *inputs, scale, rows=5), both(name.removesuffix("QuantTensor"), *inputs, rows=5)
    for actual, attended in zip((*outcome.torch, *outcome.onnx), (*parts.torch, *parts.onnx), strict=True):
        (codes,) = OPERATORS["QuantTensor"].reference(torch.from_numpy(attended), scale)
        assert np.array_equal(actual, codes.float().numpy())
        assert actual.any()


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_agree_and_an_empty_context_gives_zero(hold, half, name):
    outcome = hold(name, *inputs_of(name, half), rows=5)
    for codes in (*outcome.torch, *outcome.onnx):
        assert not codes[5:10].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_row_stays_alone(apart, half, name):
    query, *rest = inputs_of(name, half)
    bad = query.clone()
    bad[2, 3] = float("nan")
    apart(name, (query, *rest), (bad, *rest), 2, rows=5)
