"""Runs the graphs of a packed model in PyTorch: the quantized model that every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..core.arrays import Array
from ..core.graph_io import GraphIO
from ..export.serving import Decoder, ScoringModel, ServingModel


class TorchRunner:
    """A graph of a packed model, called as the other runners are: arrays by name in, arrays by name out.

    Args:
        model: The graph; it stays where it is.
        device: Where its tensors lie. Default: CPU.
    """

    def __init__(self, model: ServingModel | ScoringModel, device: torch.device | None = None) -> None:
        self._model, self._device = model.eval(), device or torch.device("cpu")

    @property
    def io(self) -> GraphIO:
        """The contract of the graph."""
        return self._model.io

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        given = [torch.from_numpy(inputs[tensor.name]).to(self._device) for tensor in self.io.inputs]
        with self._device:  # constants that the model makes on its way lie there, too
            outputs = self._model(*given)
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return {tensor.name: value.cpu().numpy() for tensor, value in zip(self.io.outputs, found, strict=True)}


class ScoringTorchRunner(TorchRunner):
    """The scoring graph of a decoder for a number of paths per request."""

    def __init__(self, decoder: Decoder, paths: int, device: torch.device | None = None) -> None:
        super().__init__(ScoringModel(decoder, paths), device)
