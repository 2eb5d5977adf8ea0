"""BeamStep: log-softmax, sum, top-k; exact ties by flat index, narrow and wide beams, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import ExportError
from onerec_trt.operators.beam_step import beam_groups, compare_beams


def step(run, logits, scores, width):
    return run("BeamStep", logits, scores, **beam_groups(scores.shape[1], logits.shape[1], width))


@pytest.mark.parametrize(("rows", "vocabulary", "width"), [(1, 2, 2), (1, 50, 7), (2, 33, 37), (37, 17, 130), (5, 8, 40)])
def test_ragged_sizes(hold, half, rows, vocabulary, width):
    scores, parent, token = step(hold, half(3 * rows, vocabulary), torch.randn(3, rows), width).torch
    assert (np.diff(scores, axis=1) <= 0).all(), "best first"
    assert parent.max() < rows
    assert token.max() < vocabulary


def test_scores_are_sums_of_log_probabilities(hold, half):
    logits, before = half(2 * 3, 11), torch.randn(2, 3)
    probability = logits.double().softmax(-1).view(2, 3, 11)
    for scores, parent, token in step(hold, logits, before, 9):
        for request in range(2):
            expected = [before[request, p] + probability[request, p, t].log() for p, t in zip(parent[request], token[request], strict=True)]
            assert scores[request] == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize("width", [3, 20, 60, 100])
def test_exact_ties_keep_the_flat_order_in_both(both, width):
    """Equal scores: the smaller beam * V + token first, also where the width exceeds the codebook."""
    for scores, parent, token in step(both, torch.zeros(2 * 5, 20).half(), torch.zeros(2, 5), width):
        flat = np.arange(width)
        assert (parent == flat // 20).all()
        assert (token == flat % 20).all()
        assert scores == pytest.approx(-np.log(20))


def test_ties_between_beams_go_to_the_earlier_beam(both, half):
    row = half(1, 16)
    for _, parent, token in step(both, row.expand(4, -1).contiguous(), torch.zeros(1, 4), 8):
        assert (parent[0] == [0, 1, 2, 3, 0, 1, 2, 3]).all()
        assert (token[0, :4] == row[0].argmax().item()).all()


@pytest.mark.parametrize(("rows", "vocabulary", "width"), [(5, 192, 7), (3, 96, 40), (16, 256, 16), (2, 7, 5), (4, 40, 33)])
def test_many_ties_across_groups_keep_the_flat_order(both, rows, vocabulary, width):
    """Scores of five values: the last places are always decided by the flat index, within groups and between them."""
    few = torch.randint(0, 5, (2, rows, vocabulary)).half()
    few[..., :5] = torch.arange(5).half()
    few = few.sort(-1)[0][..., torch.randperm(vocabulary)]  # a row like the other: the same normalizer, so that ties are exact
    logits = few[:, :1].expand(-1, rows, -1).reshape(2 * rows, -1).contiguous()
    outcome = step(both, logits, torch.zeros(2, rows), width)
    for meant, found in zip(outcome.torch[1:], outcome.onnx[1:], strict=True):
        assert np.array_equal(meant, found)


@pytest.mark.parametrize(("vocabulary", "group"), [(8192, 64), (96, 32), (50, 2), (33, 1)])
def test_groups_divide_the_codebook(vocabulary, group):
    assert beam_groups(512, vocabulary, 512) == {"width": 512, "group": group, "kept": 512}
    assert beam_groups(1, vocabulary, vocabulary)["kept"] == vocabulary // group


def test_all_candidates_are_kept_when_the_beam_is_as_wide(hold, half):
    for _, parent, token in step(hold, half(2 * 3, 7), torch.randn(2, 3), 21):
        assert all(len(set(row)) == 21 for row in parent * 7 + token)


def test_bad_request_stays_alone_and_in_range(both, half):
    logits, before = half(3 * 2, 9), torch.randn(3, 2)
    bad = logits.clone()
    bad[2:4] = float("nan")
    clean, poisoned = step(both, logits, before, 5), step(both, bad, before, 5)
    for good, after in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        for first, second in zip(good, after, strict=True):
            assert np.array_equal(np.delete(first, 1, 0), np.delete(second, 1, 0))
        assert np.isnan(after[0][1]).all()
        assert 0 <= after[1].min() <= after[1].max() < 2
        assert 0 <= after[2].min() <= after[2].max() < 9


def test_a_bad_row_takes_no_place_of_its_request(both, half):
    """NaN, +inf, or nothing but -inf: what remains is as if the row were not there."""
    logits, before = half(3 * 4, 9), torch.randn(3, 4)
    bad = logits.clone()
    bad[1, 3], bad[6, 0], bad[11] = float("nan"), float("inf"), float("-inf")
    without = before.clone()
    without[0, 1], without[1, 2], without[2, 3] = -1e9, -1e9, -1e9
    clean, poisoned = step(both, logits, without, 20), step(both, bad, before, 20)
    for good, after in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        for first, second in zip(good, after, strict=True):
            assert np.array_equal(first, second)


@pytest.mark.parametrize("width", [24, 30, 36])
def test_after_minus_infinity_comes_nan_in_flat_order(both, half, width):
    """Row 0 is NaN, row 1 has three finite logits, row 2 the score -inf; row 3 is good."""
    logits, before = half(4, 9), torch.randn(1, 4)
    logits[0, 5], logits[1, 3:], before[0, 2] = float("nan"), float("-inf"), float("-inf")
    for scores, parent, token in step(both, logits, before, width):
        flat = (parent * 9 + token)[0]
        assert np.isfinite(scores[0, :12]).all()
        assert flat[12:27].tolist() == list(range(12, 27))[: width - 12]
        assert np.isneginf(scores[0, 12:27]).all()
        assert flat[27:].tolist() == list(range(9))[: width - 27 if width > 27 else 0]
        assert np.isnan(scores[0, 27:]).all()


def test_no_more_beams_than_candidates():
    with pytest.raises(AssertionError, match="41 beams of 40 candidates"):
        beam_groups(5, 8, 41)


def test_no_more_groups_than_fp32_can_number():
    """A codebook that nothing divides has a group for each candidate."""
    assert beam_groups(3840, 8192, 512)["group"] == 64
    with pytest.raises(ExportError, match="3000 beams of a codebook of 8191") as caught:
        beam_groups(3000, 8191, 512)
    assert "multiple of 64" in caught.value.hint


class TestComparison:
    """Orders may differ inside the tie band; a candidate must have the score it claims."""

    inputs = (np.array([[2.0, 1.0, 1.0 + 1e-7, -3.0]]), np.zeros((1, 1)))

    def outputs(self, tokens, scores=None):
        logits = self.inputs[0][0]
        exact = logits[tokens] - np.log(np.exp(logits).sum())
        return [np.array([exact if scores is None else scores], np.float32), np.zeros((1, len(tokens)), np.int64), np.array([tokens])]

    def compare(self, actual, expected):
        return compare_beams(actual, expected, list(self.inputs), {"width": 2, "group": 4, "kept": 1})

    def test_the_same(self):
        assert self.compare(self.outputs([0, 2]), self.outputs([0, 2])) == 0

    def test_other_order_within_the_band(self):
        assert self.compare(self.outputs([0, 1]), self.outputs([0, 2])) < 1e-6

    def test_candidate_without_that_score(self):
        wrong = self.outputs([0, 3], scores=self.outputs([0, 2])[0][0])
        assert self.compare(wrong, self.outputs([0, 2])) == float("inf")

    def test_repeated_candidate(self):
        assert self.compare(self.outputs([0, 0]), self.outputs([0, 0])) == float("inf")

    def test_nan_in_the_place_of_a_score(self):
        wrong = self.outputs([0, 2])
        wrong[0][0, 1] = np.nan
        assert self.compare(wrong, self.outputs([0, 2])) == float("inf")

    def test_token_out_of_range(self):
        wrong = self.outputs([0, 2])
        wrong[2] = np.array([[0, 4]])
        assert self.compare(wrong, self.outputs([0, 2])) == float("inf")
