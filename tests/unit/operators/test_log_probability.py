"""Log-probabilities of the ONNX functions: exact at every size of a codebook, and the same in both graphs of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.operators.beam_step import beam_groups
from onerec_trt.validation.serving_parity import ONNXRUNTIME_TOLERANCE

CODEBOOK = 8192  # of the published models


def every_token(run, logits):
    """ONNX Runtime's log-probability of each token of each row."""
    tokens = torch.arange(logits.shape[1]).expand(len(logits), -1).contiguous()
    (scores,) = run("TokenScore", logits, tokens).onnx
    return scores


def sharp_logits(rows, codebook=CODEBOOK):
    """A few tokens have nearly all probability, and the largest logit is far from zero."""
    return (torch.randn(rows, codebook) * 5 + 48).half()


@pytest.mark.parametrize("codebook", [1, 127, 128, 129, 700, 8191, CODEBOOK])
def test_exact_at_every_size(both, codebook):
    logits = sharp_logits(20, codebook)
    exact = logits.double().log_softmax(-1).numpy()
    likely = exact > -16  # beyond, FP32 itself is coarser
    assert np.abs(every_token(both, logits) - exact)[likely].max() < 1.5e-6


def test_a_row_has_the_same_bits_whatever_rows_lie_beside_it(both):
    logits = sharp_logits(37)
    together = every_token(both, logits)
    for first, last in ((0, 1), (5, 8), (36, 37)):
        assert np.array_equal(every_token(both, logits[first:last].contiguous()), together[first:last])


@pytest.mark.parametrize("seed", [2, 5])
def test_scores_of_the_beam_steps_are_those_of_the_scoring_graph(both, seed):
    """The gate's tolerance holds for a correct model whose codebook has its real size."""
    torch.manual_seed(seed)
    scores, own = torch.zeros(1, 1), np.zeros(1)
    for _step in range(3):
        logits = sharp_logits(scores.shape[1])
        best, parent, token = both("BeamStep", logits, scores, **beam_groups(scores.shape[1], CODEBOOK, 33)).onnx
        (said,) = both("TokenScore", logits[parent[0]], torch.from_numpy(token)).onnx
        scores, own = torch.from_numpy(best), own[parent[0]] + said[0].astype(np.float64)
    assert np.abs(best[0] - own).max() <= ONNXRUNTIME_TOLERANCE


@pytest.mark.parametrize("codebook", [40, 300, 1024])
def test_tiles_without_a_finite_logit_add_nothing(both, codebook):
    logits = sharp_logits(3, codebook)
    logits[:, 3:-3] = float("-inf")
    scores, exact = every_token(both, logits), logits.double().log_softmax(-1).numpy()
    assert np.isneginf(scores[:, 3:-3]).all()
    assert np.delete(scores, np.s_[3:-3], 1) == pytest.approx(np.delete(exact, np.s_[3:-3], 1), abs=1.5e-6)


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_one_bad_logit_makes_its_whole_row_nan(both, bad):
    logits = sharp_logits(3, 600)
    logits[1] = float("-inf")
    logits[1, 500] = float(bad)
    scores = every_token(both, logits)
    assert np.isnan(scores[1]).all()
    assert np.isfinite(scores[[0, 2]]).all()
