"""Compares quantized weights with those that ModelOpt's fake-quantized model multiplies with."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.errors import CalibrationError
from ..core.precision import BLOCK
from ..operators import fp8
from .modelopt_api import SMALLEST_AMAX, fake_quantized_weight
from .quantize import QuantizedWeight
from .summary import WeightCheck
from .targets import Target

# ModelOpt multiplies by 448 / amax where we divide by amax / 448: both round in FP32, so the results may differ by a few
# units of 2^-24 (seen: 2.2e-7 relative), and a value on the boundary between two codes may go either way (seen: 5e-7 of codes).
RELATIVE_ROUNDING = 1e-6


class WeightAgreement:
    """Compares the linears one by one and counts the codes that differ."""

    def __init__(self, modelopt_model: nn.Module) -> None:
        self._model = modelopt_model
        self._linears, self._codes, self._differing = 0, 0, 0

    def compare(self, target: Target, weight_NK: Tensor, quantized: QuantizedWeight) -> None:
        """Compare one quantized weight with ModelOpt's.

        Raises:
            CalibrationError: They differ by more than rounding.
        """
        theirs_NK, ours_NK = fake_quantized_weight(self._model, target), quantized.dequantized()
        same_NK = (ours_NK - theirs_NK).abs() <= RELATIVE_ROUNDING * ours_NK.abs()
        # Elsewhere both must be equally near to the exact weight: it lies halfway between their two codes.
        nearness_NK = ((ours_NK - weight_NK).abs() - (theirs_NK - weight_NK).abs()).abs()
        halfway_NK = nearness_NK <= RELATIVE_ROUNDING * weight_NK.abs()
        wrong = int((~(same_NK | halfway_NK | _flushed_by_modelopt(quantized))).sum())
        if wrong:
            raise CalibrationError(
                f"{wrong} of {weight_NK.numel()} quantized weights differ from ModelOpt's by more than rounding",
                where=target.name,
                hint="the calibration is another checkpoint's, or this ModelOpt release quantizes differently (0.47 is known good)",
            )
        self._linears += 1
        self._codes += weight_NK.numel()
        self._differing += int((~same_NK).sum())

    def result(self) -> WeightCheck:
        return WeightCheck(linears=self._linears, codes=self._codes, differing_codes=self._differing)


def _flushed_by_modelopt(quantized: QuantizedWeight) -> Tensor:
    """Where ModelOpt takes amax for zero and we do not: [N, 1], or [N, K] for blocks."""
    tiny = quantized.scale <= SMALLEST_AMAX / 448
    if tiny.ndim == 1:
        return tiny[:, None]
    rows, inputs = quantized.shape
    return fp8.expand_block_scale(tiny, rows).repeat_interleave(BLOCK, 1)[:, :inputs]
