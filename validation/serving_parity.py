"""Gate 3, the serving graph: its items and scores beside what the scoring graph of the same engine says of them.

Both graphs of an engine hold one model. So the scoring graph, which the other gates hold against FP32, is the measure here:
what the serving graph says of an item must be what the scoring graph says, and no item that is clearly better may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..models.config import LEVELS
from .fp32_reference import Reference
from .gates import Gate, Measured, gate

Floats = NDArray[np.float32]
Sids = NDArray[np.int64]

# ONNX Runtime gives a row the same result whatever rows lie beside it, so only the FP32 sums of three log-probabilities differ.
ONNXRUNTIME_TOLERANCE = 2e-6 * LEVELS  # nat, for scores down to -16; beyond, FP32 itself is coarser and the tolerance grows with it
_EXACT_DOWN_TO = 16.0


@dataclass(frozen=True, eq=False)
class Found:
    """What the serving graph of an engine gave, and what the scoring graph of the same engine says of these items.

    Args:
        sids_nW3: The items, best first, as they came.
        scores_nW: Their scores.
        scoring_nW3: Log-probability of each token by the scoring graph. An item out of range was moved into it first.
    """

    sids_nW3: Sids
    scores_nW: Floats
    scoring_nW3: Floats


class Noise(NamedTuple):
    """Error of an engine against FP32 along FP32's beams, in nat: the worst of each step's running score, and the mean of the last."""

    worst_3: NDArray[np.float64]
    mean: float


class ServingErrors(BaseModel):
    """What is wrong with the serving graph's output.

    `malformed`: requests with an item out of range, an item twice, or an item behind a worse one; `first_malformed` describes one.
    `score_error`, `mean_score_error`: difference in nat from the scoring graph's scores of the same items.
    `left_out`: items of FP32's beams that this engine itself holds for clearly better and did not find.
    """

    malformed: int
    first_malformed: str = ""
    score_error: Measured
    mean_score_error: Measured
    worst_score: str = ""
    left_out: int
    first_left_out: str = ""
    noise: Measured
    mean_noise: Measured


def in_range(sids_nW3: Sids, codebook: int) -> Sids:
    """The items with every token moved into the codebook, so that the scoring graph can take them."""
    return sids_nW3.clip(0, codebook - 1)


def engine_noise(scoring_nW3: Floats, reference: Reference) -> Noise:
    """How far an engine's scoring graph is from FP32 along FP32's beams."""
    error_nW3 = np.abs(_running(scoring_nW3) - _running(reference.scoring_nW3))
    return Noise(error_nW3.max((0, 1)), float(error_nW3[..., -1].mean()))


def serving_errors(found: Found, scoring_nW3: Floats, reference: Reference, codebook: int, ids: Sequence[str]) -> ServingErrors:
    """Compare the output of a serving graph with the scoring graph of the same engine.

    Args:
        found: The output.
        scoring_nW3: Log-probabilities along FP32's beams by the scoring graph of the engine.
        reference: FP32's beams.
        codebook: Tokens of a level.
        ids: Names of the requests, for messages.
    """
    noise = engine_noise(scoring_nW3, reference)
    malformed, first_malformed = _malformed(found, codebook, ids)
    expected_nW = _running(found.scoring_nW3)[..., -1]
    error_nW = np.abs(found.scores_nW - expected_nW) / np.maximum(1, np.abs(expected_nW) / _EXACT_DOWN_TO)
    row, place = divmod(int(np.argmax(np.where(np.isnan(error_nW), np.inf, error_nW))), error_nW.shape[1])
    left_out_nW = _left_out(found, scoring_nW3, reference, noise)
    return ServingErrors(
        malformed=malformed,
        first_malformed=first_malformed,
        score_error=float(error_nW.max()),
        mean_score_error=float(error_nW.mean()),
        worst_score=f"request {ids[row]}, item {place + 1}: {found.scores_nW[row, place]:.6g}, scoring graph {expected_nW[row, place]:.6g}",
        left_out=int(left_out_nW.sum()),
        first_left_out=_describe_left_out(left_out_nW, found, scoring_nW3, reference, ids),
        noise=float(noise.worst_3[-1]),
        mean_noise=noise.mean,
    )


def serving_gates(recipe: str, errors: ServingErrors, engine: str) -> list[Gate]:
    """Items well formed, scores those of the scoring graph, nothing better left out.

    In ONNX Runtime the two graphs agree to FP32 rounding. The two plans of an engine choose other kernels for other numbers of rows,
    and one FP16 rounding flips FP8 codes: they may differ by no more than the engine itself is off FP32.
    """
    exact = engine == "onnxruntime"
    tolerance = ONNXRUNTIME_TOLERANCE if exact else max(errors.noise, ONNXRUNTIME_TOLERANCE)
    gates = [
        gate("items in range, distinct and in order", recipe, errors.malformed, "<=", 0, errors.first_malformed),
        gate("scores are the scoring graph's", recipe, errors.score_error, "<=", tolerance, errors.worst_score),
        gate("no better item left out", recipe, errors.left_out, "<=", 0, errors.first_left_out),
    ]
    if not exact:
        mean = max(errors.mean_noise, ONNXRUNTIME_TOLERANCE)
        gates.insert(2, gate("scores are the scoring graph's, mean", recipe, errors.mean_score_error, "<=", mean))
    return gates


def _malformed(found: Found, codebook: int, ids: Sequence[str]) -> tuple[int, str]:
    """How many requests have malformed items, and what is wrong with the first of them."""
    outside_n = ((found.sids_nW3 < 0) | (found.sids_nW3 >= codebook)).any((1, 2))
    number_nW = found.sids_nW3 @ np.array([codebook**2, codebook, 1], np.int64)
    twice_n = (np.diff(np.sort(number_nW, 1), axis=1) == 0).any(1)
    disorder_n = ~(found.scores_nW[:, :-1] >= found.scores_nW[:, 1:]).all(1)  # NaN is in no order
    wrong_n = outside_n | twice_n | disorder_n
    if not wrong_n.any():
        return 0, ""
    row = int(np.argmax(wrong_n))
    told = {"an item out of range": outside_n, "an item twice": twice_n, "an item behind a worse one": disorder_n}
    return int(wrong_n.sum()), f"request {ids[row]} has {' and '.join(what for what, is_so_n in told.items() if is_so_n[row])}"


def _left_out(found: Found, scoring_nW3: Floats, reference: Reference, noise: Noise) -> NDArray[np.bool_]:
    """FP32's items [n, W] that the engine had to find by its own scores and did not.

    An item may be dropped at a step whose last kept beam is better. That beam's score is not seen, but two bounds are:
    it is no better than any item found has at that step; and no better than FP32's last kept beam by more than the engine errs.
    An item that is above one of them at every step was dropped for nothing.
    """
    own_n3 = _running(found.scoring_nW3).min(1) + np.maximum(_disagreement(found), ONNXRUNTIME_TOLERANCE)
    bound_n3 = np.fmin(own_n3, reference.cutoffs_n3.astype(np.float64) + noise.worst_3)
    above_nW = (_running(scoring_nW3) > bound_n3[:, None]).all(-1)
    return np.asarray(above_nW & ~contains(found.sids_nW3, reference.sids_nW3), np.bool_)


def _disagreement(found: Found) -> float:
    """How far the two graphs are apart, in nat; what lies closer is no clear order. A faulty graph has its own gate for that."""
    return float(np.nan_to_num(np.abs(found.scores_nW - _running(found.scoring_nW3)[..., -1]), nan=0.0).max())


def _describe_left_out(left_out_nW: NDArray[np.bool_], found: Found, scoring_nW3: Floats, reference: Reference, ids: Sequence[str]) -> str:
    if not left_out_nW.any():
        return ""
    row, place = (int(index) for index in np.argwhere(left_out_nW)[0])
    item = reference.sids_nW3[row, place]
    step = next(level for level in range(LEVELS) if not (found.sids_nW3[row, :, : level + 1] == item[: level + 1]).all(1).any())
    score, last = _running(scoring_nW3)[row, place, -1], _running(found.scoring_nW3)[row, :, -1].min()
    return f"request {ids[row]}: item {item.tolist()} has {score:.4g}, the worst item found {last:.4g}; lost at step {step}"


def contains(sids_nW3: Sids, wanted_nW3: Sids) -> NDArray[np.bool_]:
    """Which of the wanted items [n, W] are among the others of their request."""
    base = int(max(sids_nW3.max(initial=0), wanted_nW3.max(initial=0))) + 1
    weights = np.array([base**2, base, 1], np.int64)
    rows = zip(wanted_nW3 @ weights, sids_nW3 @ weights, strict=True)
    return np.stack([np.isin(wanted_W, found_W) for wanted_W, found_W in rows])


def _running(scoring_nW3: Floats) -> NDArray[np.float64]:
    """Score of an item after each of its tokens."""
    return np.cumsum(scoring_nW3.astype(np.float64), -1)
