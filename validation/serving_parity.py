"""Gate 3, the serving graph: its items and scores beside what the scoring graph of the same engine says of them.

Both graphs of an engine hold one model. So the scoring graph, which the other gates hold against FP32, is the measure here:
what the serving graph says of an item must be what the scoring graph says, and no item that is clearly better may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..models.config import LEVELS
from .fp32_reference import Reference
from .gates import Gate, Measured, gate
from .outputs import Floats, Outputs, Sids

# Both graphs compute log-probabilities by one function (operators/log_probability.py), and ONNX Runtime gives a row the same result
# whatever rows lie beside it. So only the FP32 sums of three log-probabilities differ.
ONNXRUNTIME_TOLERANCE = 2e-6 * LEVELS  # nat, for scores down to -16; beyond, FP32 itself is coarser and the tolerance grows with it
_EXACT_DOWN_TO = 16.0


class Noise(NamedTuple):
    """How far an engine is from a model along FP32's beams, in nat: the worst of each step's running score, and the mean of the last."""

    worst_3: NDArray[np.float64]
    mean: float


class ServingErrors(BaseModel):
    """What is wrong with the serving graph's output.

    `malformed`: requests with an item out of range, an item twice, or an item behind a worse one; `first_malformed` describes one.
    `score_error`, `mean_score_error`: difference in nat from the scoring graph's scores of the same items.
    `left_out`: items of the beams of FP32 or of the quantized model that this engine itself holds for clearly better and did not find.
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


def noise_between(scoring_nW3: Floats, model_nW3: Floats) -> Noise:
    """How far an engine's scoring graph is from a model along the same beams."""
    error_nW3 = np.abs(_running(scoring_nW3) - _running(model_nW3))
    return Noise(error_nW3.max((0, 1)), float(error_nW3[..., -1].mean()))


def serving_errors(outputs: Outputs, reference: Reference, codebook: int, ids: Sequence[str]) -> ServingErrors:
    """Compare the output of a serving graph with the scoring graph of the same engine.

    Args:
        outputs: Of the engine.
        reference: FP32's beams.
        codebook: Tokens of a level.
        ids: Names of the requests, for messages.
    """
    noise = noise_between(outputs.scoring_nW3, reference.scoring_nW3)
    malformed, first_malformed = _malformed(outputs, codebook, ids)
    expected_nW = _running(outputs.own_nW3)[..., -1]
    error_nW = np.abs(outputs.scores_nW - expected_nW) / np.maximum(1, np.abs(expected_nW) / _EXACT_DOWN_TO)
    row, place = divmod(int(np.argmax(np.where(np.isnan(error_nW), np.inf, error_nW))), error_nW.shape[1])
    worst, expected = outputs.scores_nW[row, place], expected_nW[row, place]
    left_out, first_left_out = _left_out(outputs, reference, ids)
    return ServingErrors(
        malformed=malformed,
        first_malformed=first_malformed,
        score_error=float(error_nW.max()),
        mean_score_error=float(error_nW.mean()),
        worst_score=f"request {ids[row]}, item {place + 1}: {worst:.6g}, scoring graph {expected:.6g}",
        left_out=left_out,
        first_left_out=first_left_out,
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


def _malformed(found: Outputs, codebook: int, ids: Sequence[str]) -> tuple[int, str]:
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


def _left_out(outputs: Outputs, reference: Reference, ids: Sequence[str]) -> tuple[int, str]:
    """How many items of a model's beams the engine had to find by its own scores and did not; and which is the first."""
    bound_n3 = _bounds(outputs, reference)
    beams = {
        "FP32": (reference.sids_nW3, outputs.scoring_nW3),
        "the quantized model": (outputs.quantized_sids_nW3, outputs.quantized_own_nW3),
    }
    missing = set()
    first = ""
    for model, (sids_nW3, scoring_nW3) in beams.items():
        above_nW = (_running(scoring_nW3) > bound_n3[:, None]).all(-1)
        for row, place in np.argwhere(above_nW & ~contains(outputs.sids_nW3, sids_nW3)):
            item = sids_nW3[row, place]
            missing.add((int(row), *item.tolist()))
            first = first or _describe(outputs, row, item, float(_running(scoring_nW3)[row, place, -1]), model, ids)
    return len(missing), first


def _bounds(outputs: Outputs, reference: Reference) -> NDArray[np.float64]:
    """Scores [n, 3] above which the engine keeps a beam after each step, for certain.

    A beam may be dropped where the last kept one is better. That one's score is not seen, but three bounds are: it is no better than
    any found item at that step; and no better than the last beam that FP32, or the quantized model, keeps there, by more than the
    engine is off that model. Off FP32 it may be furthest where the engine's own items lie: it found them because it overrates them.
    """
    own_n3 = _running(outputs.own_nW3).min(1) + np.maximum(_disagreement(outputs), ONNXRUNTIME_TOLERANCE)
    along = (outputs.scoring_nW3, reference.scoring_nW3), (outputs.own_nW3, outputs.fp32_nW3)
    fp32_n3 = reference.cutoffs_n3.astype(np.float64) + np.fmax(*(noise_between(*pair).worst_3 for pair in along))
    off_3 = np.maximum(noise_between(outputs.scoring_nW3, outputs.quantized_nW3).worst_3, ONNXRUNTIME_TOLERANCE)
    quantized_n3 = outputs.quantized_cutoffs_n3.astype(np.float64) + off_3
    return np.asarray(np.fmin(np.fmin(own_n3, fp32_n3), quantized_n3), np.float64)


def _disagreement(found: Outputs) -> float:
    """How far the two graphs are apart, in nat; what lies closer is no clear order. A faulty graph has its own gate for that."""
    return float(np.nan_to_num(np.abs(found.scores_nW - _running(found.own_nW3)[..., -1]), nan=0.0).max())


def _describe(found: Outputs, row: int, item: NDArray[np.int64], score: float, model: str, ids: Sequence[str]) -> str:
    step = next(level for level in range(LEVELS) if not (found.sids_nW3[row, :, : level + 1] == item[: level + 1]).all(1).any())
    last = _running(found.own_nW3)[row, :, -1].min()
    return f"request {ids[row]}: item {item.tolist()} of {model} has {score:.4g}, the worst item found {last:.4g}; lost at step {step}"


def contains(sids_nW3: Sids, wanted_nW3: Sids) -> NDArray[np.bool_]:
    """Which of the wanted items [n, W] are among the others of their request."""
    return np.asarray(places(sids_nW3, wanted_nW3) < sids_nW3.shape[1], np.bool_)


def places(sids_nW3: Sids, wanted_nk3: Sids) -> Sids:
    """The first place [n, k] of each wanted item among the W others of its request; W where it is not among them."""
    width, found = sids_nW3.shape[1], []
    for number_W, wanted_k in zip(*numbered(sids_nW3, wanted_nk3), strict=True):
        by_number = number_W.argsort(kind="stable")  # of equal items the first
        place_k = by_number[np.searchsorted(number_W[by_number], wanted_k).clip(max=width - 1)]
        found.append(np.where(number_W[place_k] == wanted_k, place_k, width))
    return np.stack(found)


def numbered(*sids_nW3: Sids) -> list[Sids]:
    """A number for each item [n, W] of several arrays; the same item has the same number in all of them."""
    base = max(int(sids.max(initial=0)) for sids in sids_nW3) + 1
    return [sids @ np.array([base**2, base, 1], np.int64) for sids in sids_nW3]


def _running(scoring_nW3: Floats) -> NDArray[np.float64]:
    """Score of an item after each of its tokens."""
    return np.cumsum(scoring_nW3.astype(np.float64), -1)
