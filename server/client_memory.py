"""Inputs of a client in /dev/shm, where the server on the same machine reads them: no payload goes through a connection."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import Array
from .triton_api import server_error, shared_memory_module

_TRIES, _PAUSE_S = 20, 0.05  # the server may hold a region for a moment after it has answered


@dataclass(frozen=True)
class _Region:
    """A region of shared memory that the server knows, and how much it holds."""

    name: str
    handle: Any
    size: int


class SharedInputs:
    """One region for each input, kept between requests, and replaced by a larger one where an input does not fit.

    Args:
        client: The client library's client, over which regions are made known to the server.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._library = client, shared_memory_module()
        self._regions: dict[str, _Region] = {}

    def put(self, name: str, array: Array) -> str:
        """Copy an input into its region; gives the region's name."""
        region = self._regions.get(name)
        if region is None or region.size < array.nbytes:
            if region is not None:
                self._give_back(self._regions.pop(name))
            region = self._regions[name] = self._new(max(1, array.nbytes))
        self._library.set_shared_memory_region(region.handle, [np.ascontiguousarray(array)])
        return region.name

    def close(self) -> None:
        """Take all regions from the server and from the machine."""
        while self._regions:
            self._give_back(self._regions.popitem()[1])

    def _new(self, size: int) -> _Region:
        name = f"onerec_trt_client_{secrets.token_hex(8)}"
        region = _Region(name, self._library.create_shared_memory_region(name, f"/{name}", size), size)
        try:
            self._client.register_system_shared_memory(name, f"/{name}", size)
        except server_error():
            self._library.destroy_shared_memory_region(region.handle)
            raise
        return region

    def _give_back(self, region: _Region) -> None:
        """The server forgets it, unless it has ended itself; the machine's memory is free in any case."""
        try:
            for attempt in range(_TRIES):
                with suppress(server_error(), OSError):
                    self._client.unregister_system_shared_memory(region.name)
                    return
                time.sleep(_PAUSE_S * min(attempt, 1))
        finally:
            self._library.destroy_shared_memory_region(region.handle)
