"""Metrics of one system beside FP32 or another system, one value per request, so that their means can be compared in pairs.

Letters in names: n requests, W beams, k first items, M metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..models.config import LEVELS
from ..models.evaluation import target_places
from ..validation.fp32_reference import Reference
from ..validation.scoring_parity import log_softmax
from ..validation.serving_parity import places
from .outputs import EngineOutputs, outputs_of_fp32

CUTOFFS = (1, 10, 100, 512)
TOP1 = "top-1 outside the tie band"
MAX_TIE_BAND = 0.02  # nat, as in validation

Values = NDArray[np.float64]
Scores = NDArray[np.float32]
Sids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric of one system.

    Args:
        name: Such as `hit@10`.
        values_n: One value per request that counts.
        fp32_n: The same of what it stands beside, FP32 or another system; None where the metric is a distance from that already.
        better: Whether more or less of it is better.
    """

    name: str
    values_n: Values
    fp32_n: Values | None
    better: int


def cutoffs(width: int) -> list[int]:
    """The k of hits and overlaps: the usual ones below the beam width, and the width."""
    return [k for k in CUTOFFS if k < width] + [width]


def tie_band(fp32: Reference) -> float:
    """Requests whose two best FP32 items lie closer, in nat, are no test of the first place."""
    return min(2 * fp32.fp16_noise, MAX_TIE_BAND)


def metrics(system: EngineOutputs, fp32: Reference, targets_n3: Sids, beside: EngineOutputs | None = None) -> list[Metric]:
    """Every metric of a system.

    Args:
        system: What it gave.
        fp32: FP32's beams and scores on the same requests. Its beams are what scores are of, and it says which first places are decided.
        targets_n3: The true next items.
        beside: What the system is compared with. Default: FP32 itself.
    """
    width, other = system.sids_nW3.shape[1], outputs_of_fp32(fp32) if beside is None else beside
    lists = [k for k in cutoffs(width) if k > 1]
    target_n, other_target_n = (target_places(outputs.sids_nW3, targets_n3) for outputs in (system, other))
    place_nW = places(system.sids_nW3, other.sids_nW3)
    found = [
        *(Metric(f"hit@{k}", hit(target_n, k), hit(other_target_n, k), 1) for k in cutoffs(width)),
        *(Metric(f"NDCG@{k}", ndcg(target_n, k), ndcg(other_target_n, k), 1) for k in lists),
        *(Metric(f"overlap@{k}", (place_nW[:, :k] < k).mean(1), None, 1) for k in lists),
    ]
    clear_n = fp32.lead_n > tie_band(fp32)
    same_n = (system.sids_nW3[:, 0] == other.sids_nW3[:, 0]).all(-1).astype(np.float64)
    found.append(Metric(TOP1, same_n[clear_n], None, 1))
    found.append(Metric(f"score regret@{width}, nat", _regret(system, other), None, -1))
    error_n = np.abs(system.scoring_nW3.sum(-1) - other.scoring_nW3.sum(-1)).mean(1)
    found.append(Metric("score error, nat", error_n.astype(np.float64), None, -1))
    kl_n3 = step_kl(fp32.sids_nW3, other.scoring_nW3, system.scoring_nW3)
    return found + [Metric(f"KL of step {step + 1}, nat", kl_n3[:, step], None, -1) for step in range(LEVELS)]


def hit(target_n: Sids, k: int) -> Values:
    """1 where the target's place is one of the first k, else 0, [n]."""
    return (target_n < k).astype(np.float64)


def ndcg(target_n: Sids, k: int) -> Values:
    """NDCG with the target as the only relevant item, [n]: 1 / log2(2 + its place from 0 on), 0 where it is not among the first k."""
    return np.where(target_n < k, 1 / np.log2(2 + target_n), 0.0)


def step_kl(beams_nW3: Sids, expected_nW3: Scores, actual_nW3: Scores) -> Values:
    """KL divergence [n, 3] after each step, in nat, of one distribution over beams from another.

    After a step, beams that begin alike are one: the distributions are over different prefixes.

    Args:
        beams_nW3: FP32's.
        expected_nW3: Log-probability of each of their tokens, from which the divergence is taken.
        actual_nW3: Those of the system.
    """
    result = np.empty((len(beams_nW3), LEVELS))
    log_p_nW3, log_q_nW3 = (np.cumsum(scoring_nW3.astype(np.float64), -1) for scoring_nW3 in (expected_nW3, actual_nW3))
    for step in range(LEVELS):
        first_nW = _first_of_its_prefix(beams_nW3[..., : step + 1])
        log_p, log_q = (log_softmax(np.where(first_nW, score_nW3[..., step], -np.inf)) for score_nW3 in (log_p_nW3, log_q_nW3))
        with np.errstate(invalid="ignore"):
            result[:, step] = np.where(first_nW, np.exp(log_p) * (log_p - log_q), 0).sum(1)
    return np.maximum(result, 0)


def _first_of_its_prefix(prefix_nWT: Sids) -> NDArray[np.bool_]:
    """Which beams [n, W] are the first of their request with their prefix."""
    base = int(prefix_nWT.max(initial=0)) + 1
    number_nW = prefix_nWT @ (base ** np.arange(prefix_nWT.shape[-1], dtype=np.int64))
    order_nW = number_nW.argsort(1, kind="stable")  # of equal prefixes the first
    sorted_nW = np.take_along_axis(number_nW, order_nW, 1)
    begins_nW = np.ones(number_nW.shape, np.bool_)  # of a run of equal prefixes
    begins_nW[:, 1:] = sorted_nW[:, 1:] != sorted_nW[:, :-1]
    first_nW = np.empty_like(begins_nW)
    np.put_along_axis(first_nW, order_nW, begins_nW, 1)
    return first_nW


def _regret(system: EngineOutputs, other: EngineOutputs) -> Values:
    """FP32 score lost per item, [n]: above 0 where a better item was left out."""
    expected_n, actual_n = (outputs.fp32_scores_nW.mean(1, dtype=np.float64) for outputs in (other, system))
    return np.asarray(expected_n - actual_n)
