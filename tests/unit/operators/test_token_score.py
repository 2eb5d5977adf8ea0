"""TokenScore: log-probability of given tokens, from one row each or one row per request."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("width", [1, 2, 37, 130])
@pytest.mark.parametrize("vocabulary", [2, 33, 256])
def test_ragged_sizes(hold, half, width, vocabulary):
    tokens = torch.randint(0, vocabulary, (3, width))
    hold("TokenScore", half(3 * width, vocabulary), tokens)
    hold("TokenScore", half(3, vocabulary), tokens)


def test_scores_are_log_probabilities(hold, half):
    logits = half(2, 7)
    tokens = torch.arange(7).expand(2, -1).contiguous()
    for (scores,) in hold("TokenScore", logits, tokens):
        assert np.exp(scores).sum(1) == pytest.approx(1.0, rel=1e-5)
        assert scores == pytest.approx(logits.double().log_softmax(-1).numpy(), abs=1e-5)


def test_shared_row_equals_the_same_row_repeated(hold, half):
    logits, tokens = half(3, 19), torch.randint(0, 19, (3, 5))
    (shared,) = hold("TokenScore", logits, tokens).onnx
    (repeated,) = hold("TokenScore", logits.repeat_interleave(5, 0), tokens).onnx
    assert np.array_equal(shared, repeated)


def test_fault_stays_in_its_request(apart, half):
    logits, tokens = half(3, 19), torch.randint(0, 19, (3, 5))
    bad = logits.clone()
    bad[1, 4] = float("nan")
    apart("TokenScore", (logits, tokens), (bad, tokens), 1)
