"""A server beside a measurement: `serve` in a thread, ended when the block ends."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import ArtifactError
from ...server.launch.flags import Endpoints
from ...server.launch.supervisor import READY_LINE, ServeOptions, serve
from ...server.repository.store import Repository

_ANY_PORT = Endpoints("127.0.0.1", 0, 0, 0)
_START_TIMEOUT_S = 600.0


@contextmanager
def served(repository: Repository, server: Path | None) -> Iterator[dict[str, int]]:
    """A server on a repository, ready; gives its ports by protocol: `http`, `grpc`, `metrics`.

    Args:
        repository: What to serve.
        server: See `find_server`.

    Raises:
        ArtifactError: The server does not start, its model does not load, or it ended before the block did.
    """
    said: queue.Queue[str | Exception] = queue.Queue()
    stopped = threading.Event()

    def run() -> None:
        try:
            serve(repository, ServeOptions(server, (), _ANY_PORT, shared_memory=True), said.put, stopped)
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for the server
            said.put(error)

    thread = threading.Thread(target=run, name="serve", daemon=True)
    thread.start()
    try:
        yield _ports(said, repository)
    finally:
        stopped.set()
        thread.join()
    while not said.empty():
        if isinstance(line := said.get(), Exception):
            raise line  # what was measured since is of no server


def _ports(said: queue.Queue[str | Exception], repository: Repository) -> dict[str, int]:
    while True:
        try:
            line = said.get(timeout=_START_TIMEOUT_S)
        except queue.Empty:
            what = f"the server is not ready after {_START_TIMEOUT_S:.0f} s"
            raise ArtifactError(what, where=str(repository.path), hint="look at its log") from None
        if isinstance(line, Exception):
            raise line
        if line.startswith(READY_LINE):
            return {name.lower(): int(port) for name, port in re.findall(r"(\w+) (\d+)", line.partition(":")[2])}
