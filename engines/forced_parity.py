"""Gate 2, per model in the forced form: the engine may be no further from FP32 than the quantised model is.

Two correct FP8 engines drift apart to the level of the FP8 noise itself, so closeness between
engines is no criterion; the error of each against FP32 is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from .gates import Gate, Measured, gate
from .reference import Reference

Floats = NDArray[np.float32]


class ForcedErrors(BaseModel):
    """Errors against FP32, means over requests: of log-probabilities in nat, and of sqrt(2 KL) over each request's paths.

    A model that gives NaN has a NaN error.
    """

    engine: Measured
    quantised: Measured
    engine_kl: Measured
    quantised_kl: Measured

    @property
    def ratio(self) -> float:
        return _ratio(self.engine, self.quantised)

    @property
    def kl_ratio(self) -> float:
        return _ratio(self.engine_kl, self.quantised_kl)


def forced_errors(engine_nW3: Floats, quantised_nW3: Floats, reference: Reference) -> ForcedErrors:
    """Errors of the engine and of the quantised PyTorch model, along the FP32 model's own beams."""
    fp32_nW3 = reference.forced_nW3
    return ForcedErrors(
        engine=_log_probability_error(engine_nW3, fp32_nW3),
        quantised=_log_probability_error(quantised_nW3, fp32_nW3),
        engine_kl=_kl(fp32_nW3, engine_nW3),
        quantised_kl=_kl(fp32_nW3, quantised_nW3),
    )


def forced_gates(recipe: str, errors: ForcedErrors, limit: float) -> list[Gate]:
    """The two ratios, engine to quantised model."""
    return [
        gate("forced log-probabilities", recipe, errors.ratio, "<=", limit, f"{errors.engine:.3g} nat against {errors.quantised:.3g}"),
        gate("forced KL", recipe, errors.kl_ratio, "<=", limit, f"{errors.engine_kl:.3g} nat against {errors.quantised_kl:.3g}"),
    ]


def _ratio(engine: float, quantised: float) -> float:
    if engine == 0:
        return 0.0
    return engine / quantised if quantised > 0 else float("inf")


def _log_probability_error(actual_nW3: Floats, fp32_nW3: Floats) -> float:
    return float(np.abs(actual_nW3 - fp32_nW3).mean((1, 2)).mean())


def _kl(fp32_nW3: Floats, actual_nW3: Floats) -> float:
    """Mean over requests of sqrt(2 KL(p || q)), with p and q the two models' distributions over the request's paths.

    Near 0 that root is the standard deviation of the log-probability error under p. The plain mean of KL is no criterion:
    it hangs on the few requests where a near-tie of a router falls the other way.
    """
    log_p, log_q = (_log_softmax(x.astype(np.float64).sum(-1)) for x in (fp32_nW3, actual_nW3))
    kl_n = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return float(np.sqrt(2 * np.maximum(kl_n, 0)).mean())


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)
