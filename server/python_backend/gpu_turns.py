"""Turns on a GPU: batches of a server's instances run one after the other, each as fast as it can.

Two processes that use a GPU at the same time get slices of its time in turn. Both batches end late then, and every change of the
process costs time. While one batch runs, the other instance gathers its own and copies it to the GPU. The file of the lock says when
the batch that runs will end, so that the other instance can see for how long nobody needs its batch.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..launch.shared_memory import SHARED_MEMORY, region_prefix

_END = struct.Struct("d")  # by the clock that all processes of a machine share (CLOCK_MONOTONIC)


class GpuTurns:
    """The locks of one GPU among all instances of one server. They end with a process, so a killed instance holds nobody up.

    One lock is held by the instance whose batch runs. The other one is shared by those instances of a version that have a batch for the
    next turn.

    Args:
        server: Process number of the server.
        device: Number of the GPU.
        version: Model and version, which get requests from one queue.
    """

    def __init__(self, server: int, device: int, version: str) -> None:
        path = f"{SHARED_MEMORY}/{region_prefix(server)}gpu{device}"
        self._running, self._next = (os.open(each, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for each in (path, f"{path}-{version}"))

    def __del__(self) -> None:
        for file in (self._running, self._next) if hasattr(self, "_next") else ():
            os.close(file)

    def line_up(self) -> None:
        """Tell the others that this instance prepares a batch, or waits for one. That ends with its turn, or with `leave`."""
        fcntl.flock(self._next, fcntl.LOCK_SH)

    def leave(self) -> None:
        """This instance has no batch any more that waits for its turn."""
        fcntl.flock(self._next, fcntl.LOCK_UN)

    def others_lined_up(self) -> bool:
        """Whether another instance of the version has lined up. Only for one that has not."""
        try:
            fcntl.flock(self._next, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._next, fcntl.LOCK_UN)
        return False

    @contextmanager
    def turn(self, expected: float = 0.0) -> Iterator[None]:
        """Waits until no other instance has the GPU; who came first is first.

        Args:
            expected: Seconds that the turn will take. Default: not known.
        """
        fcntl.flock(self._running, fcntl.LOCK_EX)
        try:
            self._announce(time.monotonic() + expected)
            self.leave()
            yield
        finally:
            self._announce(0.0)
            fcntl.flock(self._running, fcntl.LOCK_UN)

    def remaining(self) -> float:
        """Seconds until the turn of whoever has the GPU is expected to end; 0 where nobody has it. A killed one's passes by itself."""
        content = os.pread(self._running, _END.size, 0)
        return max(0.0, _END.unpack(content)[0] - time.monotonic()) if len(content) == _END.size else 0.0

    def _announce(self, end: float) -> None:
        os.pwrite(self._running, _END.pack(end), 0)
