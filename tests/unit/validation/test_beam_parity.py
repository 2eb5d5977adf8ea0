"""Metrics of beams on hand-made lists, ties included, and gates that fail for what a user would see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.recipe import ValidateOptions
from onerec_trt.models.evaluation import hits
from onerec_trt.validation.beam_parity import BeamMetrics, beam_gates, beam_metrics, overlap
from onerec_trt.validation.fp32_reference import Reference

MakeReference = Callable[..., Reference]
A, B, C, D, X = (1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (9, 9, 9)


def metrics_of(engine: Any, reference: Reference, targets: Any = None, *, regret: float = 0.0, **options: Any) -> BeamMetrics:
    """`regret`: what FP32 loses on every item."""
    sids = np.asarray(engine, np.int64)
    fp32_scores_nW = reference.scores_nW[:, : sids.shape[1]] - np.float32(regret)
    targets_n3 = np.asarray([X] * len(sids) if targets is None else targets)
    return beam_metrics(sids, fp32_scores_nW, targets_n3, reference, ValidateOptions(**options))


def passed(metrics: BeamMetrics, **options: Any) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in beam_gates("fp8-row", metrics, 0.02, ValidateOptions(**options))}


def test_overlap_is_the_share_of_expected_items_found_at_any_place() -> None:
    expected = np.array([[A, B, C, D]] * 3)
    actual = np.array([[D, C, B, A], [A, B, X, (9, 9, 8)], [X, (9, 9, 8), (9, 9, 7), (9, 9, 6)]])
    assert overlap(actual, expected).tolist() == [1.0, 0.5, 0.0]


def test_items_are_equal_only_in_all_three_tokens() -> None:
    assert overlap(np.array([[(1, 1, 2)]]), np.array([[(1, 1, 1)]])).tolist() == [0.0]


def test_equal_beams_pass_everything(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C]], [[-1.0, -2.0, -3.0]])
    metrics = metrics_of([[A, B, C]], reference, [B], top_k=2)
    assert (metrics.k, metrics.overlap, metrics.top1, metrics.hit, metrics.hit_fp32, metrics.hit_interval) == (2, 1, 1, 1, 1, (0, 0))
    assert all(passed(metrics).values())


def test_k_is_no_larger_than_the_beam(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B]], [[-1.0, -2.0]])
    assert metrics_of([[A, B]], reference, top_k=10).k == 2


def test_only_the_first_k_items_count(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C, D]], [[-1.0, -2.0, -3.0, -4.0]])
    metrics = metrics_of([[A, X, B, C]], reference, [B], top_k=2)
    assert (metrics.overlap, metrics.hit, metrics.hit_fp32) == (0.5, 0.0, 1.0)


def test_a_swap_inside_the_tie_band_is_no_fault_of_the_engine(make_hand_made_reference: MakeReference) -> None:
    """Two requests nearly tie in first place, eight do not; FP16 noise of 0.004 nat makes a band of 0.008."""
    scores = [[-1.0, -1.005, -3.0]] * 2 + [[-1.0, -1.5, -3.0]] * 8
    reference = make_hand_made_reference([[A, B, C]] * 10, scores, noise=0.004)
    metrics = metrics_of([[B, A, C]] * 2 + [[A, B, C]] * 8, reference)
    assert metrics.tie_band == pytest.approx(0.008, rel=1e-3)
    assert (metrics.top1, metrics.tie_band_share) == (1.0, pytest.approx(0.2))


def test_a_swap_outside_the_tie_band_counts(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C]] * 10, [[-1.0, -1.5, -3.0]] * 10, noise=0.004)
    metrics = metrics_of([[B, A, C]] + [[A, B, C]] * 9, reference)
    assert metrics.top1 == pytest.approx(0.9)
    assert not passed(metrics)["top-1 outside the tie band"]


def test_the_tie_band_has_an_upper_bound(make_hand_made_reference: MakeReference) -> None:
    """A noisy FP16 model must not widen the band until nothing is tested."""
    reference = make_hand_made_reference([[A, B]] * 4, [[-1.0, -1.5]] * 4, noise=3.0)
    metrics = metrics_of([[A, B]] * 4, reference)
    assert (metrics.tie_band, metrics.tie_band_share) == (0.02, 0.0)


def test_exact_ties_lie_inside_the_band_even_without_noise(make_hand_made_reference: MakeReference) -> None:
    metrics = metrics_of([[B, A]] * 2, make_hand_made_reference([[A, B]] * 2, [[-1.0, -1.0]] * 2))
    assert metrics.tie_band_share == 1.0
    assert metrics.top1 == 0.0  # nothing lies outside the band; agreement over all requests is told instead
    assert not passed(metrics)["requests inside the tie band"]


def test_too_many_near_ties_fail_although_everything_agrees(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B]] * 10, [[-1.0, -1.001]] * 3 + [[-1.0, -2.0]] * 7, noise=0.01)
    verdicts = passed(metrics_of([[A, B]] * 10, reference))
    assert [name for name, good in verdicts.items() if not good] == ["requests inside the tie band"]


def test_a_single_item_has_no_tie(make_hand_made_reference: MakeReference) -> None:
    metrics = metrics_of([[A]], make_hand_made_reference([[A]], [[-1.0]], noise=0.01))
    assert (metrics.tie_band_share, metrics.top1) == (0.0, 1.0)


def test_hits_worse_than_chance_explains_fail(make_hand_made_reference: MakeReference) -> None:
    n = 40
    reference = make_hand_made_reference([[A, B]] * n, [[-1.0, -2.0]] * n)
    missed = metrics_of([[A, X]] * n, reference, [B] * n)
    assert (missed.hit, missed.hit_fp32, missed.hit_interval[0]) == (0.0, 1.0, -1.0)
    assert missed.hit_interval[1] < -0.7
    assert not passed(missed)["hits within the paired interval of FP32"]


def test_a_few_missed_hits_among_as_many_gained_pass(make_hand_made_reference: MakeReference) -> None:
    n = 40
    reference = make_hand_made_reference([[A, B]] * n, [[-1.0, -2.0]] * n)
    engine = [[A, X]] * 2 + [[A, B]] * (n - 4) + [[A, D]] * 2
    targets = [B] * 2 + [B] * (n - 4) + [D] * 2
    metrics = metrics_of(engine, reference, targets)
    assert metrics.hit == metrics.hit_fp32
    assert passed(metrics)["hits within the paired interval of FP32"]


def test_shuffled_requests_fail_every_gate_on_agreement(make_hand_made_reference: MakeReference) -> None:
    rng = np.random.default_rng(0)
    sids = rng.integers(0, 1000, (50, 10, 3))
    reference = make_hand_made_reference(sids, -np.sort(rng.random((50, 10)) * 9))
    metrics = metrics_of(np.roll(sids, 1, axis=0), reference, sids[:, 4])
    failed = {name for name, good in passed(metrics).items() if not good}
    assert failed == {"overlap@10", "top-1 outside the tie band", "hits within the paired interval of FP32"}


def test_beams_in_reverse_order_fail_although_the_items_are_right(make_hand_made_reference: MakeReference) -> None:
    rng = np.random.default_rng(0)
    sids = rng.integers(0, 1000, (50, 10, 3))
    reference = make_hand_made_reference(sids, -np.arange(10.0)[None].repeat(50, 0))
    metrics = metrics_of(sids[:, ::-1], reference)
    assert metrics.overlap == 1.0
    assert not passed(metrics)["top-1 outside the tie band"]


def test_thresholds_come_from_the_recipe(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C, D] * 5], [np.arange(0.0, -20, -1)])
    metrics = metrics_of([[A, B, C, D] * 5], reference).model_copy(update={"overlap": 0.94})
    assert passed(metrics)["overlap@10"]
    assert not passed(metrics, overlap=0.95)["overlap@10"]


def test_hit_rates_are_those_of_the_evaluation(make_hand_made_reference: MakeReference) -> None:
    rng = np.random.default_rng(2)
    sids, targets = rng.integers(0, 2, (30, 4, 3)), rng.integers(0, 2, (30, 3))
    metrics = metrics_of(sids, make_hand_made_reference(sids, -np.arange(4.0)[None].repeat(30, 0)), targets, top_k=3)
    assert 0 < metrics.hit < 1
    assert metrics.hit == hits(sids, targets, 3).mean()


def test_pairs_of_shared_items_in_another_order_count_where_they_are_clear(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C]], [[-1.0, -1.005, -3.0]], noise=0.004)
    assert metrics_of([[B, A, C]], reference).order == 1.0  # A and B lie inside the tie band
    assert metrics_of([[A, C, B]], reference).order == 0.5  # of the clear pairs A-C and B-C, one
    assert metrics_of([[X, B, A]], reference).order == 1.0  # C is not shared
    assert not passed(metrics_of([[A, C, B]], reference))["order outside the tie band"]


def test_score_regret_is_measured_by_the_noise_of_the_quantized_model(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C]], [[-1.0, -2.0, -3.0]])
    assert passed(metrics_of([[A, B, C]], reference, regret=0.004))["score regret@3"]
    assert not passed(metrics_of([[A, B, C]], reference, regret=0.006))["score regret@3"]
    assert not passed(metrics_of([[A, B, C]], reference, regret=float("nan")))["score regret@3"]


def test_items_behind_the_first_k_count_in_the_whole_width(make_hand_made_reference: MakeReference) -> None:
    reference = make_hand_made_reference([[A, B, C, D]], [[-1.0, -2.0, -3.0, -4.0]])
    metrics = metrics_of([[A, B, X, (9, 9, 8)]], reference, top_k=2)
    assert (metrics.overlap, metrics.overlap_W) == (1.0, 0.5)
    assert passed(metrics)["overlap@2"]
    assert not passed(metrics)["overlap@4"]
