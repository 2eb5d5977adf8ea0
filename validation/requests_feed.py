"""Requests as the serving graph takes them: FP16 features padded with NaN, pathway lengths, optional paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.progress import tracked
from ..models.requests import Requests
from ..operators.operator import Array

Runner = Callable[[Mapping[str, Array]], dict[str, Array]]


def feeds(requests: Requests, batch_size: int, sids_nW3: NDArray[np.int64] | None = None) -> Iterator[dict[str, Array]]:
    """Inputs of each batch. Padding is NaN on purpose: an engine that lets it through is caught at once."""
    first = 0
    for batch in requests.batches(batch_size):
        features = batch.features_BSF.half()
        padding = torch.arange(features.shape[1]) >= batch.lengths_B3.sum(1, keepdim=True)
        inputs: dict[str, Array] = {
            "features": features.masked_fill(padding[..., None], torch.nan).numpy(),
            "lengths": batch.lengths_B3.numpy(),
        }
        if sids_nW3 is not None:
            inputs["sids"] = sids_nW3[first : first + len(batch.lengths_B3)]
        first += len(batch.lengths_B3)
        yield inputs


def run_all(runner: Runner, requests: Requests, batch_size: int, label: str, sids_nW3: NDArray[np.int64] | None = None) -> dict[str, Array]:
    """Outputs of all requests, batches joined, with a progress bar."""
    total = -(-len(requests) // batch_size)
    parts = [runner(inputs) for inputs in tracked(feeds(requests, batch_size, sids_nW3), label, total)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
