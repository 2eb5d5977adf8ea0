"""Watches the weights while they are quantized: statistics of every linear and embedding, what FP16 loses, agreement with ModelOpt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..models.config import OneRecConfig
from ..models.layout import layout
from .agreement import WeightAgreement
from .fp16_loss import Fp16Loss, fp16_loss
from .quantize import QuantizedWeight
from .score_error import Cast, ScoreErrors
from .statistics import TensorStatistics, quantization_error
from .summary import TensorSummary
from .targets import Target, linear_names


class WeightWatcher:
    """Called by `quantize` for every tensor; keeps a summary of the weight of each linear and embedding, and what tensors in FP16 lose.

    Args:
        config: The model's.
        targets: What is quantized.
        agreement: Compares quantized weights with ModelOpt's. Default: nothing is compared.
        errors: Predicts what the rounding of a tensor does to scores. Default: nothing is predicted.
        casts: By linear, how its input is quantized.

    Raises:
        CalibrationError: A quantized weight differs from ModelOpt's by more than rounding.
    """

    def __init__(
        self,
        config: OneRecConfig,
        targets: Sequence[Target],
        agreement: WeightAgreement | None,
        errors: ScoreErrors | None = None,
        casts: Mapping[str, Cast] | None = None,
    ) -> None:
        self.summaries: list[TensorSummary] = []
        self.fp16_losses: list[Fp16Loss] = []
        self._fp32 = layout(config).fp32
        self._linears = {f"{name}.weight" for name in linear_names(config)}
        self._embeddings = {name for name, kind in layout(config).others.items() if kind == "embedding"}
        self._errors, self._casts = errors, casts or {}
        self._targets = {f"{target.name}.weight": target for target in targets}
        self._agreement = agreement

    def __call__(self, name: str, weight: Tensor, quantized: QuantizedWeight | None) -> None:
        if quantized is None and name not in self._fp32:
            self.fp16_losses.append(fp16_loss(name, weight))
        if name not in self._linears | self._embeddings:
            return
        statistics = TensorStatistics(name)
        statistics.add(weight)
        error = quantization_error(weight, quantized.dequantized()) if quantized else None
        self.summaries.append(statistics.summary(error, self._score_error(name, weight, quantized)))
        if quantized and self._agreement:
            self._agreement.compare(self._targets[name], weight, quantized)

    def _score_error(self, name: str, weight: Tensor, quantized: QuantizedWeight | None) -> float | None:
        if self._errors is None or name in self._fp32:
            return None
        module = name.removesuffix(".weight")
        rounded = quantized.dequantized() if quantized else weight.half()
        if name in self._embeddings:
            return self._errors.of_embedding(module, weight, rounded)
        return self._errors.of_linear(module, weight, rounded, self._casts.get(module))
