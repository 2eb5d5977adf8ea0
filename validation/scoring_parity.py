"""Gate 2, per model in the scoring graph: the engine may be no further from FP32 than the quantized model is.

Two correct FP8 engines drift apart to the level of the FP8 noise itself, so closeness between
engines is no criterion; the error of each against FP32 is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from .confidence_interval import ratio_interval
from .fp32_reference import Reference
from .gates import Gate, Measured, gate

Floats = NDArray[np.float32]


class ScoringErrors(BaseModel):
    """Errors against FP32, means over requests: of log-probabilities in nat, and of sqrt(2 KL) over each request's paths.

    `kl_ratio_interval`: 99 % bootstrap interval of the engine's KL error in those of the quantized model.

    A model that gives NaN has a NaN error.
    """

    engine: Measured
    quantized: Measured
    engine_kl: Measured
    quantized_kl: Measured
    kl_ratio_interval: tuple[Measured, Measured]

    @property
    def ratio(self) -> float:
        return _ratio(self.engine, self.quantized)

    @property
    def kl_ratio(self) -> float:
        return _ratio(self.engine_kl, self.quantized_kl)


def scoring_errors(engine_nW3: Floats, quantized_nW3: Floats, reference: Reference) -> ScoringErrors:
    """Errors of the engine and of the quantized PyTorch model, along the FP32 model's own beams."""
    fp32_nW3 = reference.scoring_nW3
    engine_kl_n, quantized_kl_n = _kl(fp32_nW3, engine_nW3), _kl(fp32_nW3, quantized_nW3)
    return ScoringErrors(
        engine=_log_probability_error(engine_nW3, fp32_nW3),
        quantized=_log_probability_error(quantized_nW3, fp32_nW3),
        engine_kl=float(engine_kl_n.mean()),
        quantized_kl=float(quantized_kl_n.mean()),
        kl_ratio_interval=ratio_interval(engine_kl_n, quantized_kl_n),
    )


def scoring_gates(recipe: str, errors: ScoringErrors, limit: float) -> list[Gate]:
    """The two ratios, engine to quantized model.

    Of the KL ratio it is the lower end of the interval that counts: the ratio itself hangs on the few requests where a near-tie of a
    router falls the other way, and would fail or pass a correct engine by chance.
    """
    low, high = errors.kl_ratio_interval
    kl_detail = (
        f"{errors.engine_kl:.3g} nat against {errors.quantized_kl:.3g}: {errors.kl_ratio:.3g}, 99 % interval [{low:.3g}, {high:.3g}]"
    )
    return [
        gate("scoring log-probabilities", recipe, errors.ratio, "<=", limit, f"{errors.engine:.3g} nat against {errors.quantized:.3g}"),
        gate("scoring KL", recipe, low, "<=", limit, kl_detail),
    ]


def _ratio(engine: float, quantized: float) -> float:
    if engine == 0:
        return 0.0
    return engine / quantized if quantized > 0 else float("inf")


def _log_probability_error(actual_nW3: Floats, fp32_nW3: Floats) -> float:
    return float(np.abs(actual_nW3 - fp32_nW3).mean((1, 2)).mean())


def _kl(fp32_nW3: Floats, actual_nW3: Floats) -> NDArray[np.float64]:
    """For each request sqrt(2 KL(p || q)), with p and q the two models' distributions over the request's paths.

    Near 0 that root is the standard deviation of the log-probability error under p. The plain mean of KL is no criterion:
    it hangs on the few requests where a near-tie of a router falls the other way.
    """
    log_p, log_q = (_log_softmax(x.astype(np.float64).sum(-1)) for x in (fp32_nW3, actual_nW3))
    kl_n = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return np.asarray(np.sqrt(2 * np.maximum(kl_n, 0)), np.float64)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)
