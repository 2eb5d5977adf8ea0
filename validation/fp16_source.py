"""A checkpoint as the serving graph reads it in FP16, without any file: the measure of FP16 noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.precision import PRECISIONS, Precision
from ..models.checkpoint import Checkpoint
from ..models.config import OneRecConfig
from ..models.layout import layout


@dataclass(frozen=True)
class Fp16Source:
    """The FP16 baseline of a checkpoint: every tensor rounded to FP16, router and selection bias left in FP32."""

    checkpoint: Checkpoint

    @property
    def config(self) -> OneRecConfig:
        return self.checkpoint.config

    @property
    def scheme(self) -> Precision:
        return PRECISIONS["fp16"]

    def tensor(self, name: str, /) -> Tensor:
        tensor = self.checkpoint.tensor(name)
        return tensor if name in layout(self.config).fp32 else tensor.half()
