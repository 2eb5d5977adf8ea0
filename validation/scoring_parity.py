"""Gate 2, per model in the scoring graph: the engine may be no further from FP32 than the quantized model is.

Two correct FP8 engines drift apart to the level of the FP8 noise itself, so closeness between
engines is no criterion; the error of each against FP32 is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from .confidence_interval import Ratios, error_ratios
from .fp32_reference import Reference
from .gates import Gate, Measured, gate

Floats = NDArray[np.float32]


class ErrorRatios(BaseModel):
    """The engine's errors in those of the quantized model: in the mean, for the typical request, and their 99 % intervals."""

    mean: Measured
    mean_interval: tuple[Measured, Measured]
    typical: Measured
    typical_interval: tuple[Measured, Measured]


class ScoringErrors(BaseModel):
    """Errors against FP32, means over requests: of log-probabilities in nat, and of sqrt(2 KL) over each request's paths.

    A model that gives NaN has a NaN error.
    """

    engine: Measured
    quantized: Measured
    engine_kl: Measured
    quantized_kl: Measured
    ratios: ErrorRatios
    kl_ratios: ErrorRatios

    @property
    def ratio(self) -> float:
        return self.ratios.mean

    @property
    def kl_ratio(self) -> float:
        return self.kl_ratios.mean


def scoring_errors(engine_nW3: Floats, quantized_nW3: Floats, reference: Reference) -> ScoringErrors:
    """Errors of the engine and of the quantized PyTorch model, along the FP32 model's own beams."""
    fp32_nW3 = reference.scoring_nW3
    engine_n, quantized_n = (log_probability_errors(scores_nW3, fp32_nW3) for scores_nW3 in (engine_nW3, quantized_nW3))
    engine_kl_n, quantized_kl_n = (_kl(fp32_nW3, scores_nW3) for scores_nW3 in (engine_nW3, quantized_nW3))
    return ScoringErrors(
        engine=float(engine_n.mean()),
        quantized=float(quantized_n.mean()),
        engine_kl=float(engine_kl_n.mean()),
        quantized_kl=float(quantized_kl_n.mean()),
        ratios=ErrorRatios.model_validate(error_ratios(engine_n, quantized_n)._asdict()),
        kl_ratios=ErrorRatios.model_validate(error_ratios(engine_kl_n, quantized_kl_n)._asdict()),
    )


def scoring_gates(recipe: str, errors: ScoringErrors, limit: float) -> list[Gate]:
    """The engine's errors in those of the quantized model: no more than the limit for the typical request, and in the mean.

    The lower end of the interval counts: the gate fails where it is certain that the engine is worse. The typical ratio tells an engine
    that is a little worse everywhere, the mean one that is much worse somewhere.
    """
    named = (
        ("scoring log-probabilities", errors.ratios, errors.engine, errors.quantized),
        ("scoring KL", errors.kl_ratios, errors.engine_kl, errors.quantized_kl),
    )
    return [each for name, ratios, engine, quantized in named for each in ratio_gates(name, recipe, ratios, engine, quantized, limit)]


def ratio_gates(name: str, recipe: str, ratios: ErrorRatios | Ratios, actual: float, allowed: float, limit: float) -> list[Gate]:
    """That of the typical request and that of the mean. `actual` and `allowed`: mean errors of both models, in nat."""
    typical, mean = (
        f"{ratio:.3g}, 99 % interval [{low:.3g}, {high:.3g}]"
        for ratio, (low, high) in ((ratios.typical, ratios.typical_interval), (ratios.mean, ratios.mean_interval))
    )
    return [
        gate(name, recipe, ratios.typical_interval[0], "<=", limit, f"of the typical request: {typical}"),
        gate(f"{name}, mean", recipe, ratios.mean_interval[0], "<=", limit, f"{actual:.3g} nat against {allowed:.3g}: {mean}"),
    ]


def log_probability_errors(actual_nW3: Floats, fp32_nW3: Floats) -> NDArray[np.float64]:
    """Mean error of each request's tokens in nat, [n]."""
    error_n: NDArray[np.float64] = np.abs(actual_nW3.astype(np.float64) - fp32_nW3).mean((1, 2))
    return error_n


def _kl(fp32_nW3: Floats, actual_nW3: Floats) -> NDArray[np.float64]:
    """For each request sqrt(2 KL(p || q)), with p and q the two models' distributions over the request's paths.

    Near 0 that root is the standard deviation of the log-probability error under p. The plain mean of KL is no criterion:
    it hangs on the few requests where a near-tie of a router falls the other way.
    """
    log_p, log_q = (log_softmax(x.astype(np.float64).sum(-1)) for x in (fp32_nW3, actual_nW3))
    kl_n = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return np.asarray(np.sqrt(2 * np.maximum(kl_n, 0)), np.float64)


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis of [n, W]; -inf has no share."""
    shifted = x - x.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)
