"""Systems that are compared: a name, what it gave, and where it stands in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..validation.fp32_reference import Reference

Standing = Literal["noise floor", "quantized"]


@dataclass(frozen=True, eq=False)
class EngineOutputs:
    """Recommendations of an engine, a plan, or a packed model in PyTorch.

    Args:
        sids_nW3: Its items, best first, int64.
        fp32_scores_nW: What the FP32 model says of them, FP32.
        scoring_nW3: Its log-probability of each token along the FP32 model's beams, FP32.
    """

    sids_nW3: NDArray[np.int64]
    fp32_scores_nW: NDArray[np.float32]
    scoring_nW3: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.sids_nW3.shape == self.scoring_nW3.shape == (*self.fp32_scores_nW.shape, 3)


class System(NamedTuple):
    """An engine, a plan, or a packed model in PyTorch, in one precision. `standing`: FP16 is the noise floor of what is quantized."""

    name: str
    standing: Standing
    outputs: EngineOutputs


def outputs_of_fp32(fp32: Reference) -> EngineOutputs:
    """FP32's own answers in the form of an engine's."""
    return EngineOutputs(fp32.sids_nW3, fp32.scores_nW, fp32.scoring_nW3)
