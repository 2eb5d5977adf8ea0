"""Turns on a GPU: batches of a server's instances run one after the other, each as fast as it can.

Two processes that use a GPU at the same time get slices of its time in turn. Both batches end late then, and every change of the
process costs time. While one batch runs, the other instance gathers its own and copies it to the GPU.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..launch.shared_memory import SHARED_MEMORY, region_prefix


class GpuTurns:
    """The lock of one GPU among all instances of one server. It ends with its process, so a killed instance holds nobody up.

    Args:
        server: Process number of the server.
        device: Number of the GPU.
    """

    def __init__(self, server: int, device: int) -> None:
        self._file = os.open(SHARED_MEMORY / f"{region_prefix(server)}gpu{device}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no other instance has the GPU; who came first is first."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
