"""Runs the packed serving graph in PyTorch: the quantized model that every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..core.arrays import Array
from ..core.graph_io import GraphIO
from ..export.serving import Decoder, ScoringModel


class ScoringTorchRunner:
    """The scoring graph of a packed model, called as the other runners are: arrays by name in, arrays by name out."""

    def __init__(self, decoder: Decoder, paths: int) -> None:
        self._model = ScoringModel(decoder, paths).eval()

    @property
    def io(self) -> GraphIO:
        """The contract of the graph."""
        return self._model.io

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        scores = self._model(*(torch.from_numpy(inputs[tensor.name]) for tensor in self.io.inputs))
        (output,) = self.io.outputs
        return {output.name: scores.numpy()}
