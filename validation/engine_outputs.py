"""What an engine gave for the held-out requests, kept beside its gates, so that fidelity is measured without running it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

OUTPUTS_FILE = "outputs.safetensors"


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


def write_outputs(outputs: EngineOutputs, folder: Path) -> None:
    """Write them into a folder; token numbers fit into 32 bits."""
    arrays = {
        "sids_nW3": outputs.sids_nW3.astype(np.int32),
        "fp32_scores_nW": outputs.fp32_scores_nW,
        "scoring_nW3": outputs.scoring_nW3,
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / OUTPUTS_FILE)


def read_outputs(folder: Path) -> EngineOutputs:
    """Read what `write_outputs` wrote."""
    arrays = load_file(folder / OUTPUTS_FILE)
    return EngineOutputs(arrays["sids_nW3"].astype(np.int64), arrays["fp32_scores_nW"], arrays["scoring_nW3"])
