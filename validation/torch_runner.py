"""Runs the packed serving graph in PyTorch: the quantized model that every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..export.serving import Decoder, ScoringModel
from ..operators.operator import Array


class TorchRunner:
    """Same calling convention as the other runners: arrays by name in, arrays by name out."""

    def __init__(self, module: nn.Module, output_names: tuple[str, ...]) -> None:
        self.module, self.output_names = module.eval(), output_names

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self.module(*(torch.from_numpy(array) for array in inputs.values()))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: tensor.numpy() for name, tensor in zip(self.output_names, tensors, strict=True)}


def scoring_torch_runner(decoder: Decoder, paths: int) -> TorchRunner:
    """The scoring graph of a packed model in PyTorch."""
    return TorchRunner(ScoringModel(decoder, paths), ("log_probabilities",))
