"""Inputs that are bound once and stay on the GPU, such as an index of valid items: shared by all execution slots, swapped between batches.

Each has two buffers for good: one that batches read, and one that new content is staged in. A swap copies from one to the other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arrays import Array
from ..core.dtypes import DTYPES
from ..core.errors import RequestError
from ..core.graph_io import GraphTensor
from .autograd import without_autograd
from .host_to_gpu import HostToGpu


@dataclass(frozen=True)
class Staged:
    """Content that lies ready on the GPU.

    Attributes:
        names: Its inputs.
        number: Which staging it was: the next one takes its place.
    """

    names: tuple[str, ...]
    number: int


class ResidentInputs:
    """Buffers of a plan's resident inputs, whose addresses never change, so that captured CUDA graphs stay valid.

    All memory is taken here: staging and swapping allocate nothing. Threads may stage and swap at the same time.

    Args:
        tensors: The resident inputs.

    Raises:
        torch.OutOfMemoryError: The GPU has no room for the buffers.
    """

    @without_autograd
    def __init__(self, tensors: Iterable[GraphTensor]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._buffers, self._standby = self._empty(), self._empty()
        self._bound: set[str] = set()
        self._to_gpu = HostToGpu(max((buffer.nbytes for buffer in self._standby.values()), default=0))
        self._staging = threading.Lock()  # held while content is copied to the GPU
        self._latest = threading.Lock()  # held for a moment: which staging the standby buffers belong to
        self._number = 0
        self._swapped = torch.cuda.Event(blocking=True)

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """What batches read, on the GPU, by name."""
        return self._buffers

    def require_bound(self, where: str) -> None:
        """Refuse to run before every resident input has content.

        Raises:
            RequestError: Names those without.
        """
        if missing := sorted(self.tensors.keys() - self._bound):
            hint = "call bind_resident(name, array) once before the first batch"
            raise RequestError(f"resident input not bound: {', '.join(missing)}", where=where, hint=hint)

    def stage(self, contents: Mapping[str, Array | Tensor]) -> Staged:
        """Copy content to the GPU beside the batches that run, to be swapped in. It may change once this returns.

        Waits for the swap before this one, which needs the standby buffers until the batches submitted before it have ended.

        Args:
            contents: By name, of the inputs' types and shapes.
        """
        with self._staging:
            with self._latest:
                self._number += 1
                number = self._number
            self._swapped.synchronize()
            for name, content in contents.items():
                self._to_gpu.copy(content, self._standby[name])
        return Staged(tuple(contents), number)

    @without_autograd
    def swap(self, staged: Staged, streams: Sequence[torch.cuda.Stream]) -> None:
        """Replace content between batches: those enqueued before see the old one, those enqueued afterwards the new.

        Enqueues copies within the GPU, and waits for nothing. The caller sees to it that nobody enqueues on the streams meanwhile.

        Args:
            staged: What `stage` gave last. It may be swapped in again.
            streams: All that batches run on.

        Raises:
            RequestError: Something else has been staged since.
        """
        copying = streams[0]
        with self._latest:
            if staged.number != self._number:
                raise RequestError("other content was staged since", hint="bind what was staged before the next is staged")
            for stream in streams[1:]:
                copying.wait_stream(stream)
            with torch.cuda.stream(copying):
                for name in staged.names:
                    self._buffers[name].copy_(self._standby[name], non_blocking=True)
                self._swapped.record()
            for stream in streams[1:]:
                stream.wait_stream(copying)
        self._bound.update(staged.names)

    def _empty(self) -> dict[str, Tensor]:
        return {name: torch.empty(tensor.dims, dtype=DTYPES[tensor.dtype].torch, device="cuda") for name, tensor in self.tensors.items()}
