"""Where PyTorch computes what the gates compare with: on a GPU if there is one, since a 4B model in FP32 takes hours on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compute_device() -> torch.device:
    """PyTorch's current GPU, or the CPU. FP32 products run in FP32 on both: PyTorch leaves TF32 off."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def on_compute_device(model: nn.Module) -> Iterator[torch.device]:
    """Move a model there while the block runs, and back to the CPU."""
    device = compute_device()
    model.to(device)
    try:
        yield device
    finally:
        model.to("cpu")
