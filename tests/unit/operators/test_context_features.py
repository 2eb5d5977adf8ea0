"""ContextFeatures: features stand in the columns of their token's pathway, everything else is zero whatever the padding held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.context_features import context_features_reference

LENGTHS = [[3, 2, 4], [0, 0, 9], [5, 0, 1], [0, 3, 0], [0, 0, 0]]


def placed_one_by_one(features, lengths, width):
    """Token by token: written to be seen through."""
    requests, tokens, count = features.shape
    placed = torch.zeros(requests, tokens, lengths.shape[1], width).half()
    for request, parts in enumerate(lengths.tolist()):
        pathways = [pathway for pathway, part in enumerate(parts) for _ in range(part)]
        for token, pathway in enumerate(pathways[:tokens]):
            placed[request, token, pathway, :count] = features[request, token]
    return placed.reshape(requests * tokens, -1).numpy()


@pytest.mark.parametrize(("count", "width"), [(1, 16), (27, 32), (32, 32), (210, 224)])
def test_features_stand_in_the_columns_of_their_pathway(both, half, count, width):
    features, lengths = half(len(LENGTHS), 9, count), torch.tensor(LENGTHS)
    outcome = both("ContextFeatures", features, lengths, width=width)
    expected = placed_one_by_one(features, lengths, width)
    assert np.array_equal(outcome.torch[0], expected)
    assert np.array_equal(outcome.onnx[0], expected)


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_a_context_that_is_cut_off_keeps_its_first_tokens(both, half, tokens):
    features, lengths = half(len(LENGTHS), tokens, 6), torch.tensor(LENGTHS)
    expected = placed_one_by_one(features, lengths, 16)
    assert all(np.array_equal(found[0], expected) for found in both("ContextFeatures", features, lengths, width=16))


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 7.0])
def test_padding_changes_nothing(both, half, padding):
    features, lengths = half(len(LENGTHS), 12, 6), torch.tensor(LENGTHS)
    behind = torch.arange(12) >= lengths.sum(1, keepdim=True)
    clean = both("ContextFeatures", features.masked_fill(behind[..., None], 0), lengths, width=16)
    dirty = both("ContextFeatures", features.masked_fill(behind[..., None], padding), lengths, width=16)
    assert all(np.array_equal(before[0], after[0]) for before, after in zip(clean, dirty, strict=True))
    assert clean.torch[0].any()


def test_a_fault_stays_in_its_token_and_pathway(both, half):
    features, lengths = half(2, 9, 6), torch.tensor(LENGTHS[:2])
    features[1, 4, 3] = float("nan")
    for (found,) in both("ContextFeatures", features, lengths, width=16):
        assert np.argwhere(np.isnan(found)).tolist() == [[9 + 4, 2 * 16 + 3]]


def test_one_product_is_the_linears_of_all_pathways(half):
    features, lengths = half(3, 9, 6), torch.tensor(LENGTHS[:3])
    weights = torch.randn(3, 4, 6)
    matrix = torch.nn.functional.pad(weights, (0, 10)).transpose(0, 1).flatten(1)
    (placed,) = context_features_reference(features, lengths, width=16)
    projected = (placed.float() @ matrix.T).view(3, 9, 4)
    assert torch.allclose(projected[0, 4], weights[1] @ features[0, 4].float())
    assert torch.allclose(projected[2, 5], weights[2] @ features[2, 5].float())
    assert not projected[2, 6:].any()
