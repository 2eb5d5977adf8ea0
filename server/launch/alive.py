"""Whether a server with the Python backend is alive, for a container's probe: it answers, and all its instances are there.

The server never starts a dead instance again and sends requests to it, of which each fails. `serve` replaces it; in a container nobody
does, so that the container has to be started anew.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

from .processes import stubs

MODULE = "onerec_trt.server.launch.alive"
_OF_A_CONTAINER = 1  # process number of what it was started for
_TIMEOUT_S = 3.0


def alive(port: int, instances: int, server: int = _OF_A_CONTAINER) -> bool:
    """Whether the server answers at this port of HTTP, and has so many living instances at least.

    Args:
        port: Of HTTP on this machine.
        instances: Of all models.
        server: Its process number. Default: that in a container.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=_TIMEOUT_S):
            return len(stubs(server)) >= instances
    except (OSError, HTTPException):
        return False


def main(arguments: Sequence[str]) -> int:
    """What a probe runs: `python3 -m onerec_trt.server.launch.alive PORT INSTANCES`; gives its exit code."""
    port, instances = map(int, arguments)
    return 0 if alive(port, instances) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
