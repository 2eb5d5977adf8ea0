"""Gate 2 where few requests are concerned: the requests in which the engine is far worse than the quantized model.

A fault in one request of twenty hardly moves the typical ratio of errors, and the ratio of means is too unsure to tell it from a
near-tie of a router. But two correct engines err alike: in a thousand requests a few are three times as wrong in the one as in the
other, and as often the other way. So these are counted, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .confidence_interval import ERROR_FLOOR, share_interval
from .fp32_reference import Reference
from .gates import Gate, gate
from .scoring_parity import log_probability_errors

FAR = 3.0  # times as wrong; E4M3's rounding alone makes a request twice as wrong by chance
LARGEST_SHARE = 0.0025  # of the requests: what two correct engines may differ by
_NAME = "scoring log-probabilities, few requests"


def few_requests_gate(
    recipe: str, engine_nW3: NDArray[np.float32], quantized_nW3: NDArray[np.float32], reference: Reference, ids: Sequence[str]
) -> Gate:
    """Share of requests that are far worse, less that of requests that are far better: the lower end of its exact 99 % interval.

    Args:
        recipe: Its name.
        engine_nW3: The engine's log-probabilities along FP32's beams.
        quantized_nW3: Those of the quantized PyTorch model.
        reference: FP32's.
        ids: Names of the requests, for the message.
    """
    engine_n, quantized_n = (log_probability_errors(scores_nW3, reference.scoring_nW3) for scores_nW3 in (engine_nW3, quantized_nW3))
    if not np.isfinite(engine_n + quantized_n).all():
        return gate(_NAME, recipe, np.nan, "<=", LARGEST_SHARE)
    engine_n, quantized_n = (np.maximum(errors_n, ERROR_FLOOR * quantized_n.mean()) for errors_n in (engine_n, quantized_n))
    worse_n, better_n = engine_n > FAR * quantized_n, quantized_n > FAR * engine_n
    low, _ = share_interval(worse_n, better_n)
    detail = f"{worse_n.sum()} of {len(ids)} requests are {FAR:g} x as wrong as in the quantized model, {better_n.sum()} the other way"
    if worse_n.any():
        row = int(np.argmax(engine_n - quantized_n))
        detail += f"; the worst is {ids[row]}: {engine_n[row]:.3g} nat against {quantized_n[row]:.3g}"
    return gate(_NAME, recipe, low, "<=", LARGEST_SHARE, detail)
