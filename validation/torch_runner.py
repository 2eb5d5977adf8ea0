"""Runs the graphs of a packed model in PyTorch: the quantized model that every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.arrays import Array
from ..core.graph_io import GraphIO
from ..core.progress import tracked
from ..export.serving import Decoder, ScoringModel, ServingModel
from ..models.requests import Requests
from ..operators.beam_step import beam_step
from ..operators.beam_step_items import beam_step_items_1, beam_step_items_2, beam_step_items_3
from ..operators.operator import recorded_calls
from ..runtime.item_index import ItemIndex
from .requests_feed import feeds

_STEPS = tuple(step.name for step in (beam_step, beam_step_items_1, beam_step_items_2, beam_step_items_3))


class TorchRunner:
    """A graph of a packed model, called as the other runners are: arrays by name in, arrays by name out. It runs where the model lies."""

    def __init__(self, model: ServingModel | ScoringModel) -> None:
        self._model = model.eval()

    @property
    def io(self) -> GraphIO:
        """The contract of the graph."""
        return self._model.io

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        device = self._model.decoder.token_embedding.device
        given = [torch.from_numpy(inputs[tensor.name]).to(device) for tensor in self.io.inputs]
        with device:  # constants that the model makes on its way lie there, too
            outputs = self._model(*given)
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return {tensor.name: value.cpu().numpy() for tensor, value in zip(self.io.outputs, found, strict=True)}


class ScoringTorchRunner(TorchRunner):
    """The scoring graph of a decoder for a number of paths per request."""

    def __init__(self, decoder: Decoder, paths: int) -> None:
        super().__init__(ScoringModel(decoder, paths))


class FoundBeams(NamedTuple):
    """Items int64 [n, W, 3], best first, and the score FP32 [n, 3] of the last beam kept after each step."""

    sids_nW3: NDArray[np.int64]
    cutoffs_n3: NDArray[np.float32]


@torch.no_grad()
def torch_beams(serving: ServingModel, requests: Requests, batch_size: int, label: str, index: ItemIndex | None = None) -> FoundBeams:
    """What the serving graph of a packed model finds for all requests, with a progress bar.

    `index`: the catalogue, which a model that follows one needs.
    """
    residents = index.resident(serving.io) if index is not None and serving.io.resident else {}
    device, sids, cutoffs = serving.decoder.token_embedding.device, [], []
    for inputs in tracked(feeds(serving.io, requests, batch_size), label, -(-len(requests) // batch_size)):
        given = {**inputs, **residents}
        with recorded_calls(only=_STEPS) as steps:
            found_BW3, _ = serving(*(torch.from_numpy(np.asarray(given[tensor.name])).to(device) for tensor in serving.io.inputs))
        sids.append(found_BW3.cpu().numpy())
        cutoffs.append(torch.stack([step.outputs[0][:, -1] for step in steps], 1).cpu().numpy())
    return FoundBeams(np.concatenate(sids), np.concatenate(cutoffs))
