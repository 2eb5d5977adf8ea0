"""Gate 4, beams and hits on a trained model: does the engine recommend what the FP32 model recommends?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.recipe import ValidateOptions
from ..models.evaluation import hits
from .confidence_interval import share_interval
from .fp32_reference import Reference
from .gates import Gate, Measured, gate
from .serving_parity import contains, places

Sids = NDArray[np.int64]
Floats = NDArray[np.float32]


class BeamMetrics(BaseModel):
    """Agreement of an engine's items with the FP32 model's; k is the recipe's `top_k`, W the whole width.

    `order`: of the pairs of shared items whose FP32 scores lie further apart than the tie band, the share in FP32's order.

    `tie_band`: nat; requests whose two best FP32 items lie closer are no test of the first place.
    `score_regret`, `score_regret_W`: mean FP32 log-probability lost per item among the first k, or all W, in nat.
    `hit_interval`: exact paired 99 % interval of hit@k minus the FP32 model's.
    """

    k: int
    overlap: float
    width: int
    overlap_W: float
    order: float
    top1: float
    tie_band: float
    tie_band_share: float
    score_regret: float
    score_regret_W: Measured
    hit: float
    hit_fp32: float
    hit_interval: tuple[float, float]


def beam_metrics(sids_nW3: Sids, fp32_scores_nW: Floats, targets_n3: Sids, reference: Reference, options: ValidateOptions) -> BeamMetrics:
    """Compare an engine's items with the reference beams of the same requests.

    Args:
        sids_nW3: The items, best first.
        fp32_scores_nW: What FP32 says of them.
        targets_n3: The true next items.
        reference: FP32's beams.
        options: k and the bound of the tie band.
    """
    width = sids_nW3.shape[1]
    k = min(options.top_k, width)
    band = min(2 * reference.fp16_noise, options.tie_band_nat)
    clear = reference.lead_n > band
    same_first = (sids_nW3[:, 0] == reference.sids_nW3[:, 0]).all(-1)
    engine_hits, fp32_hits = hits(sids_nW3, targets_n3, k), hits(reference.sids_nW3, targets_n3, k)
    return BeamMetrics(
        k=k,
        overlap=float(overlap(sids_nW3[:, :k], reference.sids_nW3[:, :k]).mean()),
        width=width,
        overlap_W=float(overlap(sids_nW3, reference.sids_nW3).mean()),
        order=order(sids_nW3, reference, band),
        top1=float(same_first[clear].mean()) if clear.any() else float(same_first.mean()),
        tie_band=band,
        tie_band_share=float(1 - clear.mean()),
        score_regret=float(reference.scores_nW[:, :k].mean() - fp32_scores_nW[:, :k].mean()),
        score_regret_W=float(reference.scores_nW.mean() - fp32_scores_nW.mean()),
        hit=float(engine_hits.mean()),
        hit_fp32=float(fp32_hits.mean()),
        hit_interval=share_interval(engine_hits, fp32_hits),
    )


def beam_gates(recipe: str, metrics: BeamMetrics, noise: float, options: ValidateOptions) -> list[Gate]:
    """Overlap, order, regret, first place, width of the tie band, and a hit rate that differs by no more than chance explains.

    `noise`: mean error in nat of the quantized model's scores, which the score regret is measured by.
    """
    low, high = metrics.hit_interval
    hit_rates = f"hit@{metrics.k} {metrics.hit:.3f}, FP32 {metrics.hit_fp32:.3f}"
    hit_detail = f"{hit_rates}, paired 99 % interval of the difference [{low:.4f}, {high:.4f}]"
    regret = metrics.score_regret_W
    relative = 0.0 if regret <= 0 else regret / noise if noise > 0 else float("inf")
    regret_detail = f"{metrics.score_regret_W:.3g} nat for each item; the quantized model's scores are off by {noise:.3g} nat"
    whole = [gate(f"overlap@{metrics.width}", recipe, metrics.overlap_W, ">=", options.overlap)] if metrics.width > metrics.k else []
    return [
        gate(f"overlap@{metrics.k}", recipe, metrics.overlap, ">=", options.overlap, f"score regret {metrics.score_regret:.3g} nat"),
        *whole,
        gate("order outside the tie band", recipe, metrics.order, ">=", options.order, f"band {metrics.tie_band:.2g} nat"),
        gate(f"score regret@{metrics.width}", recipe, relative, "<=", options.score_regret, regret_detail),
        gate("top-1 outside the tie band", recipe, metrics.top1, ">=", options.top1, f"band {metrics.tie_band:.2g} nat"),
        gate("requests inside the tie band", recipe, metrics.tie_band_share, "<=", options.tie_band_share),
        gate("hits within the paired interval of FP32", recipe, max(0.0, low, -high), "<=", 0.0, hit_detail),
    ]


def overlap(actual_nk3: Sids, expected_nk3: Sids) -> NDArray[np.float64]:
    """Share of each request's expected items that are among the actual ones, [n]."""
    return np.asarray(contains(actual_nk3, expected_nk3).mean(1), np.float64)


def order(sids_nW3: Sids, reference: Reference, band: float) -> float:
    """Of all pairs of items that both have and that FP32 sets apart by more than the band, the share in FP32's order; 1 without any."""
    pairs = alike = 0
    for place_W, scores_W in zip(places(sids_nW3, reference.sids_nW3), reference.scores_nW, strict=True):
        shared_W = place_W < sids_nW3.shape[1]
        place, score = place_W[shared_W], scores_W[shared_W]
        clear = score[:, None] - score[None] > band
        pairs += int(clear.sum())
        alike += int((clear & (place[:, None] < place[None])).sum())
    return alike / pairs if pairs else 1.0
