"""Verdicts: which scale a tensor needs in FP8, by the error that each would leave in the products it takes part in.

The error of the tensor alone says little: one huge channel or token carries all of its energy, while what the model computes hangs on the
rest. So the measure is the result of the product, token by token, with every output channel of one weight.
"""

from __future__ import annotations

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..calibration.quantize import quantize_weight, weight_amax
from ..calibration.statistics import activation_cast, outliers
from ..core.precision import FP16_WARN, Granularity
from ..operators import fp8

# E4M3's three mantissa bits leave 31 to 32 dB where values are spread evenly; 28 dB is half a bit less.
SAFE_DB = 28.0
_EXACT_DB = 99.0  # where there is no error at all


class Verdict(StrEnum):
    """The coarsest scale that is safe."""

    TENSOR = "per-tensor scale is safe"
    ROW = "needs per-token"
    CHANNEL = "needs per-channel"
    BLOCK = "needs blocks"
    FP16 = "keep FP16"


class Judgement(BaseModel):
    """A verdict with its reason. The numbers: signal-to-noise ratio in dB of the product by scale, from the mean noise share of a token.

    `outlier`: AbsMax lies far above AbsP99, whether or not E4M3's exponents can hold both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    outlier: bool
    tensor_db: float
    row_db: float
    block_db: float
    reason: str


def judge_activation(sample_NK: Tensor, absmax: float, absp99: float, weight_MK: Tensor) -> Judgement:
    """What an activation needs.

    Args:
        sample_NK: Some of its rows.
        absmax, absp99: Of all rows; one static scale has to hold the AbsMax.
        weight_MK: What it is multiplied by.
    """
    casts = (activation_cast(Granularity.TENSOR, absmax), activation_cast(Granularity.ROW, None), activation_cast(Granularity.BLOCK, None))
    exact_NM = sample_NK @ weight_MK.T
    decibels = [product_db(exact_NM, cast(sample_NK) @ weight_MK.T) for cast in casts]
    return _judge(decibels, ("one static scale", "a scale per token", "blocks of 128"), Verdict.ROW, absmax, absp99)


def judge_weight(weight_MK: Tensor, sample_NK: Tensor) -> Judgement:
    """What a weight needs, by its products with some rows of its input."""
    exact_NM = sample_NK @ weight_MK.T

    def result(granularity: Granularity) -> Tensor:
        return sample_NK @ quantize_weight(weight_MK, granularity, weight_amax(weight_MK, granularity)).dequantized().T

    one_scale = fp8.scale_of(weight_MK.abs().amax())
    whole_NM = sample_NK @ (fp8.quantize_tensor(weight_MK, one_scale).float() * one_scale).T
    products = (whole_NM, result(Granularity.ROW), result(Granularity.BLOCK))
    decibels = [product_db(exact_NM, product) for product in products]
    magnitude = weight_MK.abs()
    absmax, absp99 = float(magnitude.amax()), float(magnitude.flatten().kthvalue(math.ceil(0.99 * magnitude.numel())).values)
    return _judge(decibels, ("one scale", "a scale per channel", "blocks of 128 x 128"), Verdict.CHANNEL, absmax, absp99)


def product_db(exact_NM: Tensor, actual_NM: Tensor) -> float:
    """Signal-to-noise ratio in dB: of the noise share of each row, the mean. Every output channel counts alike, rows of zeros do not.

    A channel's size is what it has of the rows' sizes, so that no row decides alone which channels count.
    """
    exact, actual = exact_NM.double(), actual_NM.double()
    size_N1 = exact.square().mean(1, keepdim=True).sqrt()
    size_M = (exact / size_N1.where(size_N1 > 0, 1.0)).square().mean(0).sqrt()
    filled_M = size_M > 0
    exact, actual = exact[:, filled_M] / size_M[filled_M], actual[:, filled_M] / size_M[filled_M]
    signal_N, noise_N = exact.square().sum(1), (actual - exact).square().sum(1)
    filled_N = signal_N > 0
    if not bool(filled_N.any()):
        return _EXACT_DB
    share = float((noise_N[filled_N] / signal_N[filled_N]).mean())
    return min(_EXACT_DB, -10 * math.log10(share)) if share > 0 else _EXACT_DB


def _judge(decibels: list[float], words: tuple[str, str, str], second: Verdict, absmax: float, absp99: float) -> Judgement:
    ladder = (Verdict.TENSOR, second, Verdict.BLOCK)
    verdict = next((verdict for verdict, db in zip(ladder, decibels, strict=True) if db >= SAFE_DB), Verdict.FP16)
    reason = ", ".join(f"{word} {db:.1f} dB" for word, db in zip(words, decibels, strict=True))
    if far := outliers(absmax, absp99):
        reason += f"; outliers: {far}"
    if absmax > FP16_WARN:
        reason += f"; AbsMax {absmax:.3g} comes close to the end of FP16"
    tensor_db, row_db, block_db = decibels
    return Judgement(verdict=verdict, outlier=far is not None, tensor_db=tensor_db, row_db=row_db, block_db=block_db, reason=reason)
