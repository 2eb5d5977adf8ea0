"""Copies from the host to the GPU beside batches that run: nothing is allocated, and no batch waits for more than a piece.

A copy from pageable memory is the driver's work for as long as it takes, and other threads enqueue nothing meanwhile; an allocation
may wait for the whole GPU. So content goes piece by piece through one page-locked buffer that is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Array
from .autograd import without_autograd

PIECE = 4 << 20  # bytes: what a batch's own inputs may have to wait for, 0.2 ms at 25 GB/s (PCIe 4.0 x16)


class HostToGpu:
    """A stream and a page-locked buffer. For one thread at a time.

    Args:
        largest: Bytes of the largest content.
    """

    @without_autograd
    def __init__(self, largest: int) -> None:
        self._stream = torch.cuda.Stream()
        self._piece = torch.empty(min(PIECE, largest), dtype=torch.uint8, pin_memory=True)
        self._copied = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps

    @without_autograd
    def copy(self, content: Array | Tensor, target: Tensor) -> None:
        """Copy to contiguous memory of the same size on the GPU; it is there on return. Content may lie on the GPU, too."""
        self._stream.wait_stream(torch.cuda.current_stream())
        if isinstance(content, Tensor) and content.is_cuda:
            self._enqueue(content, target)
        else:
            self._in_pieces(_bytes_of(content), target.view(-1).view(torch.uint8))

    def _in_pieces(self, content_n: NDArray[np.uint8], target_n: Tensor) -> None:
        for begin in range(0, len(content_n), PIECE):
            part_n = content_n[begin : begin + PIECE]
            piece_n = self._piece[: len(part_n)]
            np.copyto(piece_n.numpy(), part_n)  # without the GIL
            self._enqueue(piece_n, target_n[begin : begin + PIECE])

    def _enqueue(self, content: Tensor, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(content, non_blocking=True)
            self._copied.record()
        self._copied.synchronize()


def _bytes_of(content: Array | Tensor) -> NDArray[np.uint8]:
    if isinstance(content, Tensor):
        flat: NDArray[np.uint8] = content.detach().contiguous().view(-1).view(torch.uint8).numpy()
        return flat
    return np.ascontiguousarray(content).reshape(-1).view(np.uint8)
