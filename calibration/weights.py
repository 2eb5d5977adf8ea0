"""Watches the weights while they are quantized: statistics of every linear, what FP16 loses, and agreement with ModelOpt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..models.config import OneRecConfig
from ..models.layout import layout
from .agreement import WeightAgreement
from .fp16_loss import Fp16Loss, fp16_loss
from .quantize import QuantizedWeight
from .statistics import TensorStatistics, quantization_error
from .summary import TensorSummary
from .targets import Target, linear_names


class WeightWatcher:
    """Called by `quantize` for every tensor; keeps a summary of each linear's weight, and what every tensor in FP16 loses.

    Raises:
        CalibrationError: A quantized weight differs from ModelOpt's by more than rounding.
    """

    def __init__(self, config: OneRecConfig, targets: Sequence[Target], agreement: WeightAgreement | None) -> None:
        self.summaries: list[TensorSummary] = []
        self.fp16_losses: list[Fp16Loss] = []
        self._fp32 = layout(config).fp32
        self._linears = {f"{name}.weight" for name in linear_names(config)}
        self._targets = {f"{target.name}.weight": target for target in targets}
        self._agreement = agreement

    def __call__(self, name: str, weight: Tensor, quantized: QuantizedWeight | None) -> None:
        if quantized is None and name not in self._fp32:
            self.fp16_losses.append(fp16_loss(name, weight))
        if name not in self._linears:
            return
        statistics = TensorStatistics(name)
        statistics.add(weight)
        self.summaries.append(statistics.summary(quantization_error(weight, quantized.dequantized()) if quantized else None))
        if quantized and self._agreement:
            self._agreement.compare(self._targets[name], weight, quantized)
