"""Metrics per request against small cases worked out by hand, and what a system that is FP32 itself gets."""

from __future__ import annotations

import numpy as np
import pytest
from onerec_trt.fidelity.metrics import cutoffs, hit, metrics, ndcg, step_kl, tie_band
from onerec_trt.fidelity.outputs import EngineOutputs
from onerec_trt.models.evaluation import target_places
from onerec_trt.validation.fp32_reference import Reference

SIDS = np.array([[[0, 0, 0], [0, 1, 0], [2, 0, 0]], [[1, 1, 1], [1, 1, 2], [0, 0, 3]]])
LOG_P = np.log(np.array([[[0.6, 0.5, 1.0], [0.6, 0.5, 0.5], [0.4, 0.2, 1.0]], [[0.5, 1.0, 0.6], [0.5, 1.0, 0.4], [0.2, 0.2, 0.2]]]))


def reference() -> Reference:
    scoring = LOG_P.astype(np.float32)
    return Reference(SIDS, scoring.sum(-1), scoring.cumsum(-1)[:, -1], scoring, scoring + 0.001)


def same() -> EngineOutputs:
    fp32 = reference()
    return EngineOutputs(SIDS.copy(), fp32.scores_nW.copy(), fp32.scoring_nW3.copy())


def by_name(outputs: EngineOutputs, targets: np.ndarray) -> dict[str, np.ndarray]:
    return {metric.name: metric.values_n for metric in metrics(outputs, reference(), targets)}


def test_a_system_that_is_fp32_agrees_in_everything() -> None:
    targets = SIDS[:, 1]
    found = {metric.name: metric for metric in metrics(same(), reference(), targets)}
    assert all(metric.values_n.tolist() == metric.fp32_n.tolist() for metric in found.values() if metric.fp32_n is not None)
    assert found["overlap@3"].values_n.tolist() == [1, 1]
    for name in ("score regret@3, nat", "score error, nat", "KL of step 1, nat", "KL of step 3, nat"):
        assert not found[name].values_n.any()


def test_hits_and_ndcg_fall_with_the_place_of_the_target() -> None:
    targets = np.array([[0, 1, 0], [9, 9, 9]])
    place = target_places(SIDS, targets)
    assert place.tolist() == [1, 3]
    assert (hit(place, 1).tolist(), hit(place, 2).tolist()) == ([0, 0], [1, 0])
    assert ndcg(place, 3) == pytest.approx([1 / np.log2(3), 0])
    assert ndcg(place, 1).tolist() == [0, 0]
    found = by_name(same(), targets)
    assert (found["hit@1"].tolist(), found["hit@3"].tolist()) == ([0, 0], [1, 0])


def test_other_items_cost_overlap_the_first_place_and_regret() -> None:
    outputs = same()
    outputs.sids_nW3[0, 0] = [5, 5, 5]
    outputs.fp32_scores_nW[0, 0] -= 3
    found = by_name(outputs, SIDS[:, 0])
    assert found["overlap@3"] == pytest.approx([2 / 3, 1])
    assert found["top-1 outside the tie band"].tolist() == [0, 1]
    assert found["score regret@3, nat"] == pytest.approx([1, 0])


def test_requests_inside_the_tie_band_are_no_test_of_the_first_place() -> None:
    fp32 = reference()
    fp32.scores_nW[0, 1] = fp32.scores_nW[0, 0]
    assert tie_band(fp32) == pytest.approx(2 * 0.003, rel=0.01)
    top1 = next(metric for metric in metrics(same(), fp32, SIDS[:, 0]) if metric.name.startswith("top-1"))
    assert len(top1.values_n) == 1


def test_kl_of_a_step_counts_each_prefix_once() -> None:
    outputs = same()
    outputs.scoring_nW3[0, :2, 0] += np.log(0.5)  # the first token 0 of request 0, which two beams share
    kl = step_kl(SIDS, reference().scoring_nW3, outputs.scoring_nW3)
    p, q = np.array([0.6, 0.4]), np.array([0.3, 0.4]) / 0.7
    assert kl[0, 0] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    assert kl[1].tolist() == [0, 0, 0]


def test_beside_another_system_scores_are_still_those_of_fp32s_beams() -> None:
    """The other system found items that all begin differently; FP32's beams, which scores are of, begin alike in two of three."""
    other, again = same(), same()
    other.sids_nW3[0] = [[7, 0, 0], [8, 0, 0], [9, 0, 0]]
    again.scoring_nW3[0, :2, 0] += np.log(0.5)
    kl = {metric.name: metric.values_n for metric in metrics(again, reference(), SIDS[:, 0], other)}["KL of step 1, nat"]
    assert kl[0] == pytest.approx(by_name(again, SIDS[:, 0])["KL of step 1, nat"][0])


def test_beside_another_system_fp32_says_which_first_places_are_decided() -> None:
    """The other system has the FP16 form's own scores and the best items swapped: neither changes what FP32 decides."""
    fp32, other = reference(), same()
    fp32.scores_nW[1, 1] = fp32.scores_nW[1, 0] - 0.005  # inside the band of 2 x 0.003 nat
    other.scoring_nW3[:] = fp32.fp16_scoring_nW3
    other.sids_nW3[0, :2], other.fp32_scores_nW[0, :2] = other.sids_nW3[0, 1::-1].copy(), other.fp32_scores_nW[0, 1::-1].copy()
    top1 = next(metric for metric in metrics(other, fp32, SIDS[:, 0], other) if metric.name.startswith("top-1"))
    assert top1.values_n.tolist() == [1]


def test_the_width_is_the_last_cutoff() -> None:
    assert cutoffs(512) == [1, 10, 100, 512]
    assert cutoffs(64) == [1, 10, 64]
    assert cutoffs(1) == [1]
