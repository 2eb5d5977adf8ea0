"""References made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onerec_trt.validation.fp32_reference import Reference


def hand_made(sids: Any, scores: Any, *, noise: float = 0.0) -> Reference:
    """A reference with these beams and scores; the FP16 model is `noise` nat off on every item."""
    scores_nW = np.asarray(scores, np.float32)
    scoring_nW3 = np.repeat(scores_nW[..., None] / 3, 3, 2)
    cutoffs_n3 = scoring_nW3.cumsum(-1).min(1)
    return Reference(np.asarray(sids, np.int64), scores_nW, cutoffs_n3, scoring_nW3, scoring_nW3 + np.float32(noise / 3))


@pytest.fixture
def make_hand_made_reference() -> Callable[..., Reference]:
    return hand_made
