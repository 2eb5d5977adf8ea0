"""ContextAttention: rows of a request over its context; grouped queries, empty contexts, padding, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onerec_trt.operators.context_norm import context_norm


def zero_padded(half, lengths, groups, tokens, d_head):
    """Keys or values as ContextNorm leaves them: zero beyond a request's length."""
    valid = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return torch.where(valid[:, None, :, None], half(len(lengths), groups, tokens, d_head), 0)


@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize(("heads", "groups", "d_head", "tokens"), [(1, 1, 32, 1), (6, 2, 48, 20), (4, 4, 128, 37), (6, 1, 64, 5)])
def test_ragged_sizes(hold, half, rows, heads, groups, d_head, tokens):
    lengths = [tokens, 0, (tokens + 1) // 2]
    key, value = (zero_padded(half, lengths, groups, tokens, d_head) for _ in range(2))
    query = half(len(lengths) * rows, heads * d_head)
    (attended,) = hold("ContextAttention", query, key, value, torch.tensor(lengths), rows=rows).torch
    assert attended.any()


def test_is_grouped_query_attention(hold, half):
    query, key, value = half(2 * 3, 6 * 32), half(2, 2, 9, 32), half(2, 2, 9, 32)
    (attended,) = hold("ContextAttention", query, key, value, torch.tensor([9, 9]), rows=3).onnx
    heads = query.view(2, 3, 6, 32).transpose(1, 2).float()
    expected = F.scaled_dot_product_attention(heads, key.float(), value.float(), enable_gqa=True)
    assert attended == pytest.approx(expected.transpose(1, 2).reshape(6, -1).numpy(), abs=2e-3)


def test_empty_context_gives_zero(hold, half):
    key, value = (zero_padded(half, [0, 4], 2, 4, 32) for _ in range(2))
    for (attended,) in hold("ContextAttention", half(2 * 5, 128), key, value, torch.tensor([0, 4]), rows=5):
        assert not attended[:5].any()
        assert attended[5:].any()


def test_softmax_of_large_scores_does_not_overflow(hold, half):
    key = half(1, 1, 7, 32) * 100
    for (attended,) in hold("ContextAttention", half(3, 32) * 100, key, half(1, 1, 7, 32), torch.tensor([7]), rows=3):
        assert np.isfinite(attended).all()


def test_longer_padding_changes_nothing(hold, half):
    key, value = half(1, 2, 5, 32), half(1, 2, 5, 32)
    query, lengths = half(3, 128), torch.tensor([5])
    (short,) = hold("ContextAttention", query, key, value, lengths, rows=3).onnx
    longer = [F.pad(kv, (0, 0, 0, 11)) for kv in (key, value)]
    (padded,) = hold("ContextAttention", query, *longer, lengths, rows=3).onnx
    assert padded == pytest.approx(short, rel=2e-3, abs=1e-4)


def test_nan_in_the_features_of_padding_changes_nothing(both, half):
    """ContextNorm and ContextAttention together, as they stand in the graph."""
    chunk, weight, lengths, query = half(2, 8, 64), torch.rand(32).half(), torch.tensor([5, 0]), half(2 * 3, 128)
    dirty = chunk.clone()
    dirty[0, 5:] = dirty[1] = float("nan")
    outcomes = []
    for filled in (chunk, dirty):
        (kv,) = context_norm(filled, weight, lengths, epsilon=1e-6)
        outcomes.append(both("ContextAttention", query, kv.contiguous(), kv.contiguous(), lengths, rows=3))
    clean, dirty_outcome = outcomes
    assert np.array_equal(clean.torch[0], dirty_outcome.torch[0])
    assert np.array_equal(clean.onnx[0], dirty_outcome.onnx[0])


def test_bad_request_leaves_its_neighbors_bit_identical(both, half):
    key, value, query, lengths = half(3, 2, 6, 32), half(3, 2, 6, 32), half(3 * 4, 128), torch.tensor([6, 6, 6])
    bad_key = key.clone()
    bad_key[1, 0, 2, 3] = float("nan")
    clean = both("ContextAttention", query, key, value, lengths, rows=4)
    poisoned = both("ContextAttention", query, bad_key, value, lengths, rows=4)
    for (before,), (after,) in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        assert np.array_equal(np.delete(before, slice(4, 8), 0), np.delete(after, slice(4, 8), 0))
        assert np.isnan(after[4:8]).any()


def test_bad_row_leaves_other_rows_of_its_request_alone(apart, half):
    key, value, query, lengths = half(1, 2, 6, 32), half(1, 2, 6, 32), half(5, 128), torch.tensor([6])
    bad = query.clone()
    bad[2, 3] = float("nan")
    apart("ContextAttention", (query, key, value, lengths), (bad, key, value, lengths), 2, rows=5)
