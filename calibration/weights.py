"""Watches the weights while they are quantized: statistics of every linear, and agreement with ModelOpt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..models.config import OneRecConfig
from .agreement import WeightAgreement
from .quantize import QuantizedWeight
from .statistics import TensorStatistics, quantization_error
from .summary import TensorSummary
from .targets import Target, linear_names


class WeightWatcher:
    """Called by `quantize` for every tensor; keeps a summary of each linear's weight.

    Raises:
        CalibrationError: A quantized weight differs from ModelOpt's by more than rounding.
    """

    def __init__(self, config: OneRecConfig, targets: Sequence[Target], agreement: WeightAgreement | None) -> None:
        self.summaries: list[TensorSummary] = []
        self._linears = {f"{name}.weight" for name in linear_names(config)}
        self._targets = {f"{target.name}.weight": target for target in targets}
        self._agreement = agreement

    def __call__(self, name: str, weight: Tensor, quantized: QuantizedWeight | None) -> None:
        if name not in self._linears:
            return
        statistics = TensorStatistics(name)
        statistics.add(weight)
        self.summaries.append(statistics.summary(quantization_error(weight, quantized.dequantized()) if quantized else None))
        if quantized and self._agreement:
            self._agreement.compare(self._targets[name], weight, quantized)
