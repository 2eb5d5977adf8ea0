"""Inputs that are bound once and stay on the GPU, such as an index of valid items: one buffer each, shared by all execution slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.errors import RequestError
from ..core.graph_io import GraphTensor
from .autograd import without_autograd


class ResidentInputs:
    """Buffers of a plan's resident inputs, whose address never changes, so that captured CUDA graphs stay valid.

    Args:
        tensors: The resident inputs.

    Raises:
        torch.OutOfMemoryError: The GPU has no room for the buffers.
    """

    @without_autograd
    def __init__(self, tensors: Iterable[GraphTensor]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._buffers = {
            name: torch.empty(tensor.dims, dtype=getattr(torch, tensor.dtype), device="cuda") for name, tensor in self.tensors.items()
        }
        self._bound: set[str] = set()

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """On the GPU, by name."""
        return self._buffers

    def require_bound(self, where: str) -> None:
        """Refuse to run before every resident input has content.

        Raises:
            RequestError: Names those without.
        """
        if missing := sorted(self.tensors.keys() - self._bound):
            hint = "call bind_resident(name, array) once before the first batch"
            raise RequestError(f"resident input not bound: {', '.join(missing)}", where=where, hint=hint)

    @without_autograd
    def swap(self, name: str, content: Tensor, streams: Sequence[torch.cuda.Stream]) -> torch.cuda.Event:
        """Replace the content of an input between batches: those enqueued before see the old one, those enqueued afterwards the new.

        Nobody waits on the CPU. The caller sees to it that nothing is enqueued on the streams meanwhile, and keeps the content until
        the returned event is done.

        Args:
            name: The input.
            content: On the GPU, or in pinned memory.
            streams: All that batches run on.
        """
        copying = streams[0]
        for stream in streams[1:]:
            copying.wait_stream(stream)
        with torch.cuda.stream(copying):
            self._buffers[name].copy_(content, non_blocking=True)
            finished = torch.cuda.Event()
            finished.record()
        for stream in streams[1:]:
            stream.wait_stream(copying)
        self._bound.add(name)
        return finished
