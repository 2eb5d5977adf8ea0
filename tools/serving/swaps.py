"""Catalogues swapped in a served repository while something is measured, and how long clients wait for each of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...core.errors import RequestError
from ...core.graph_io import Role
from ...models.config import PATHWAYS
from ...server.client import Client
from ...server.repository.store import Repository
from ..bench.sampling import rounded
from ..beside import Beside

_PAUSE_S = 0.5  # from the first answer of a catalogue until the next one is added
_PATIENCE_S = 60.0


class Swaps(BaseModel):
    """Swaps beside a load, one behind the other.

    Args:
        command_ms: Until the catalogue was in the repository.
        served_ms: From the same moment until a client had an answer of it: with what the server needs to find it, and the wait of a
            request in the queue of the load.
    """

    model_config = ConfigDict(extra="forbid")

    command_ms: list[float]
    served_ms: list[float]


class SwapWatch(Beside):
    """Swaps between catalogues while its block runs, with a client of its own that asks one request after the other.

    Args:
        repository: That is served, with one of the catalogues.
        model: Its name.
        catalogues: Index files by their digests, at least two.
        url: Host and port of HTTP.
    """

    def __init__(self, repository: Repository, model: str, catalogues: Mapping[str, Path], url: str) -> None:
        super().__init__()
        self._repository, self._model, self._catalogues, self._url = repository, model, catalogues, url
        self._command_ms: list[float] = []
        self._served_ms: list[float] = []
        self._failed: Exception | None = None

    def swaps(self) -> Swaps:
        """What happened in the block, which has ended.

        Raises:
            RequestError: The server answered no request, or never with a catalogue that was added.
            ArtifactError: A catalogue could not be added.
        """
        if self._failed is not None:
            raise self._failed
        return Swaps(command_ms=rounded(self._command_ms), served_ms=rounded(self._served_ms))

    def _run(self) -> None:
        try:
            served = self._repository.catalogues(self._model).served()[0]
            with Client(self._url, self._model) as client:
                for digest in cycle(sorted(self._catalogues, key=lambda digest: digest == served)):  # the served one last
                    if self._ended.wait(_PAUSE_S):
                        return
                    self._swap(client, digest)
        except Exception as error:  # noqa: BLE001 - raised by whoever asks what happened
            self._failed = error

    def _swap(self, client: Client, digest: str) -> None:
        features_SF = np.zeros((1, client.io.tensor(Role.CONTEXT_FEATURES).dims[-1]), np.float16)
        lengths_3 = [0] * (len(PATHWAYS) - 1) + [1]
        begun = time.perf_counter()
        self._repository.add_catalogue(self._model, self._catalogues[digest])
        self._command_ms.append((time.perf_counter() - begun) * 1e3)
        while client.recommend(features_SF, lengths_3).catalogue != digest:
            if time.perf_counter() - begun > _PATIENCE_S:
                hint = "look at the server's log"
                raise RequestError(
                    f"no answer is of a catalogue that was added {_PATIENCE_S:.0f} s ago", where=str(self._catalogues[digest]), hint=hint
                )
        self._served_ms.append((time.perf_counter() - begun) * 1e3)
