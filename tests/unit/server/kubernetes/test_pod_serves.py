"""A real server with the arguments of a pod."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from onerec_trt.server.kubernetes.pod import GRPC, HTTP, METRICS, arguments
from onerec_trt.server.launch.alive import alive
from onerec_trt.server.launch.installation import find_server
from onerec_trt.server.launch.processes import end_with_parent, stubs
from onerec_trt.server.repository.store import Repository

SERVER = Path(__file__).parents[4] / ".venv-server"
PATIENCE_S = 60.0


def at_free_ports(given: list[str]) -> tuple[list[str], int]:
    """A pod's arguments for this machine, where others may have its ports; and the port of HTTP."""
    changed, sockets = list(given), [socket.socket() for _ in range(3)]
    for name, number, each in zip(("http", "grpc", "metrics"), (HTTP, GRPC, METRICS), sockets, strict=True):
        each.bind(("127.0.0.1", 0))
        changed[changed.index(f"--{name}-port={number}")] = f"--{name}-port={each.getsockname()[1]}"
    port = int(sockets[0].getsockname()[1])
    for each in sockets:
        each.close()
    return changed, port


def test_it_serves_the_pods_version_whatever_is_promoted(make_export: Callable[[Path, int], Path], add: Any, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    for seed in (0, 1):
        add(repository, make_export(tmp_path / str(seed), seed))
    assert repository.promoted("onerec") == (1,)
    chosen, port = at_free_ports(arguments(repository.describe("onerec", 2), PurePosixPath(repository.path)))
    installation = find_server(SERVER, tmp_path / "working")
    command = [installation.program, *chosen, f"--backend-directory={installation.backends}"]
    server = subprocess.Popen(command, env=installation.environment(), stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    try:
        within_patience(lambda: server.poll() is not None or versions_at(port) == ["2"], "the pod's version is not ready")
        assert server.poll() is None, "the server ended"
        within_patience(lambda: alive(port, 1, server.pid), "no probe finds server and instance")
        (instance,) = stubs(server.pid)
        os.kill(instance, signal.SIGKILL)
        within_patience(lambda: not stubs(server.pid), "the instance does not end")
        assert not alive(port, 1, server.pid)
        within_patience(lambda: alive(port, 0, server.pid), "the server itself does not answer")
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def test_a_probe_that_finds_no_server_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        probe = [sys.executable, "-m", "onerec_trt.server.launch.alive", str(taken.getsockname()[1]), "0"]
        assert subprocess.run(probe, check=False, timeout=PATIENCE_S).returncode == 1


def within_patience(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def versions_at(port: int) -> list[str]:
    """What a server has of the model; nothing before it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/onerec", timeout=10) as answer:
            found: list[str] = json.load(answer)["versions"]
            return found
    except OSError:
        return []
