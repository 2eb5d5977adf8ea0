"""Where PyTorch computes: on a GPU if there is one, since a 4B model in FP32 takes hours on CPUs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compute_device(needed: int = 0) -> torch.device:
    """PyTorch's current GPU, or the CPU. FP32 products run in FP32 on both: PyTorch leaves TF32 off.

    `needed`: bytes that must be free on the GPU. Default: none.
    """
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < needed:
        return torch.device("cpu")
    return torch.device("cuda")


def release_memory() -> None:
    """Give the GPU back what PyTorch keeps of models that are gone: TensorRT does not find it otherwise."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def on_compute_device(model: nn.Module) -> Iterator[torch.device]:
    """Move a model there while the block runs; afterwards it has the tensors again that it had before."""
    device = compute_device()
    before = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    values = [(parameter, parameter.data) for parameter in model.parameters()]
    model.to(device)
    try:
        yield device
    finally:
        for module, parameters, buffers in before:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for parameter, value in values:
            parameter.data = value
