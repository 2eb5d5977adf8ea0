"""Requests as a graph's contract takes them: FP16 features padded with NaN, pathway lengths, optional paths, no rules on items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.graph_io import GraphIO, Role
from ..core.progress import tracked
from ..models.requests import Requests
from ..runtime.item_rules import open_rules


class Runner(Protocol):
    """Whatever runs a graph: arrays by name in, arrays by name out."""

    @property
    def io(self) -> GraphIO: ...

    def __call__(self, inputs: Mapping[str, Array], /) -> dict[str, Any]: ...


def feeds(io: GraphIO, requests: Requests, batch_size: int, sids_nW3: NDArray[np.int64] | None = None) -> Iterator[dict[str, Array]]:
    """Inputs of each batch. Padding is NaN on purpose: an engine that lets it through is caught at once.

    Args:
        io: The contract of the graph.
        requests: What is fed.
        batch_size: Requests per batch; the last may have fewer.
        sids_nW3: For the scoring graph, the items to score of each request.
    """
    first = 0
    for batch in requests.batches(batch_size):
        features = batch.features_BSF.half()
        padding = torch.arange(features.shape[1]) >= batch.lengths_B3.sum(1, keepdim=True)
        inputs: dict[str, Array] = {
            io.name(Role.CONTEXT_FEATURES): features.masked_fill(padding[..., None], torch.nan).numpy(),
            io.name(Role.PATHWAY_LENGTHS): batch.lengths_B3.numpy(),
            **open_rules(io, len(batch.lengths_B3)),
        }
        if sids_nW3 is not None:
            inputs[io.name(Role.GIVEN_ITEMS)] = sids_nW3[first : first + len(batch.lengths_B3)]
        first += len(batch.lengths_B3)
        yield inputs


def run_all(
    runner: Runner, requests: Requests, batch_size: int, label: str, sids_nW3: NDArray[np.int64] | None = None
) -> dict[Role, Array]:
    """Outputs of all requests by role, batches joined, with a progress bar."""
    total = -(-len(requests) // batch_size)
    parts = [runner(inputs) for inputs in tracked(feeds(runner.io, requests, batch_size, sids_nW3), label, total)]
    return {tensor.role: np.concatenate([part[tensor.name] for part in parts]) for tensor in runner.io.outputs if tensor.role is not None}
