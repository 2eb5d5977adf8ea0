"""What a system recommends for a set of requests, and what it says of FP32's items: all that fidelity is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..validation.fp32_reference import Reference

Sids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SystemOutputs:
    """A system: an engine, a plan, or a packed model in PyTorch, in one precision.

    Args:
        name: As it stands in tables.
        sids_nW3: Its items, best first.
        fp32_scores_nW: What the FP32 model says of them.
        scoring_nW3: Its log-probability of each token along FP32's beams.
    """

    name: str
    sids_nW3: Sids
    fp32_scores_nW: Floats
    scoring_nW3: Floats

    def __post_init__(self) -> None:
        assert self.sids_nW3.shape == self.scoring_nW3.shape == (*self.fp32_scores_nW.shape, 3)


def as_reference(system: SystemOutputs, fp32: Reference) -> Reference:
    """A system in the place of FP32, for what two systems differ in: its items, its own scores where FP32's beams hold them.

    Items of the system that FP32 did not find have FP32's score, the best there is.
    """
    scores_nW = system.fp32_scores_nW
    return Reference(system.sids_nW3, scores_nW, fp32.cutoffs_n3, system.scoring_nW3, fp32.fp16_scoring_nW3)
