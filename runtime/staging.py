"""Host memory copied to the GPU beside the batches that run, through two pieces of pinned memory in turns.

From pageable memory the driver copies each tensor in one call, milliseconds for 40 MB, and whether other threads can launch meanwhile
is up to it. Here every call is short.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor

from .autograd import without_autograd

PIECE = 4 << 20  # bytes: below 0.1 ms on the bus, and enough to fill it


class Staging:
    """Copies content to new tensors on the current GPU. Threads may share it; they take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @without_autograd
    def copies(self, contents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The contents on the GPU by name, complete when this returns. Some may be there already: they are copied as well.

        Raises:
            torch.OutOfMemoryError: The GPU has no room for them.
        """
        with self._lock:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                copies = {name: content.clone() if content.is_cuda else self._copy(content) for name, content in contents.items()}
            self._stream.synchronize()
        return copies

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Always the same, so that PyTorch gives the memory of one staging to the next."""
        return torch.cuda.Stream()

    @cached_property
    def _pieces(self) -> list[tuple[Tensor, torch.cuda.Event]]:
        """Pinned memory, and when the GPU has read it."""
        return [(torch.empty(PIECE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]

    def _copy(self, content: Tensor) -> Tensor:
        copy = torch.empty(content.shape, dtype=content.dtype, device="cuda")
        parts = zip(_bytes(content.contiguous()).split(PIECE), _bytes(copy).split(PIECE), cycle(self._pieces), strict=False)
        for source, target, (piece, read) in parts:
            read.synchronize()
            target.copy_(piece[: len(source)].copy_(source), non_blocking=True)
            read.record()
        return copy


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8)
