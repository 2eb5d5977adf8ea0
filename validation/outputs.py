"""What the models and one engine gave for every request: all that the gates on outputs judge, kept in the validation's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_file import read_arrays, write_arrays
from .fp32_reference import Reference

Floats = NDArray[np.float32]
Sids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outputs:
    """Arrays of one trial; every first axis is the request. Scores are log-probabilities in nat, FP32.

    Args:
        sids_nW3: The serving graph's items, best first, as they came.
        scores_nW: Their scores.
        own_nW3: The engine's scoring graph on each token of these items. An item out of range was moved into it first.
        fp32_nW3: The FP32 model on each token of these items.
        scoring_nW3: The engine's scoring graph along FP32's beams.
        quantized_nW3: The quantized PyTorch model along FP32's beams.
        quantized_sids_nW3: Beams of the quantized PyTorch model.
        quantized_cutoffs_n3: Score of the last beam that it keeps after each step.
        quantized_own_nW3: The engine's scoring graph along these beams.
    """

    sids_nW3: Sids
    scores_nW: Floats
    own_nW3: Floats
    fp32_nW3: Floats
    scoring_nW3: Floats
    quantized_nW3: Floats
    quantized_sids_nW3: Sids
    quantized_cutoffs_n3: Floats
    quantized_own_nW3: Floats


def outputs_file(label: str) -> str:
    """Name of the file that holds the outputs of a trial."""
    return f"outputs{'-' if label else ''}{label.replace(' ', '-')}.safetensors"


def write_outputs(outputs: Outputs, path: Path) -> None:
    """Write the outputs of a trial into a file."""
    write_arrays(outputs, path)


def read_outputs(path: Path) -> Outputs:
    """Read what `write_outputs` wrote.

    Raises:
        ArtifactError: Another version wrote it, with other arrays.
    """
    return read_arrays(Outputs, path, "validate the recipe again")


def rows_of(kept: Outputs | Reference, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Every array of the chosen requests, by name."""
    return {each.name: getattr(kept, each.name)[rows] for each in fields(kept)}
