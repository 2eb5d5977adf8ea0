"""A model in memory as the packed layers read it, quantized in one precision, without any file.

The numbers are those of the calibration stage: codes and scales from the same functions, static input scales from the AbsMax that
calibration requests showed. ModelOpt's "max" algorithm gives the same amax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..calibration.observation import Observation, observing
from ..calibration.quantize import Amax, stored_tensors, weight_amax
from ..calibration.scoring import ScoringRequests
from ..calibration.statistics import SAMPLE_VALUES
from ..calibration.targets import Target, quantized_targets, targets_of
from ..core.precision import Granularity, Precision, precision_of
from ..models.config import OneRecConfig
from ..models.layout import layout
from ..models.onerec import OneRec


class PackedSource:
    """A quantized checkpoint of a model in memory.

    Args:
        model: In FP32.
        precision: One of PRECISIONS.
        input_amax: AbsMax of what each group of linears reads, by the group's name; needed where activations are static.
        keep_fp16: Patterns of layers that stay in FP16. Default: none.
    """

    def __init__(self, model: OneRec, precision: str, input_amax: Mapping[str, float], keep_fp16: Sequence[str] = ()) -> None:
        self._config, self._scheme = model.config, precision_of(precision, keep_fp16)
        by_name = {f"{target.name}.weight": target for target in quantized_targets(model.config, precision, keep_fp16)}
        fp32 = layout(model.config).fp32

        def amax_of(target: Target, weight_NK: Tensor) -> Amax:
            static = target.granularity is Granularity.TENSOR
            return Amax(weight_amax(weight_NK, target.granularity), input_amax[target.group] if static else None)

        self._tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            parts = stored_tensors(name, tensor, name in fp32, by_name.get(name), amax_of)[1]
            self._tensors |= {part: value.cpu() for part, value in parts.items()}

    @property
    def config(self) -> OneRecConfig:
        return self._config

    @property
    def scheme(self) -> Precision:
        return self._scheme

    def tensor(self, name: str, /) -> Tensor:
        return self._tensors[name]


@torch.no_grad()
def observe(model: OneRec, scoring: ScoringRequests, sample_values: int = SAMPLE_VALUES) -> Observation:
    """What calibration sees of a model in FP32: every activation and how many tokens each expert was sent."""
    observation = Observation(sample_values)
    with observing(model, targets_of(model.config, "fp8-static"), observation):
        scoring.run(model, "observing")
    return observation


def input_amax(observation: Observation) -> dict[str, float]:
    """AbsMax of what each group of linears reads, by the group's name."""
    ending = ".input"
    return {name.removesuffix(ending): seen.absmax for name, seen in observation.activations.items() if name.endswith(ending)}
