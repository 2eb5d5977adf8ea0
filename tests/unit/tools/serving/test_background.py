"""A server beside a measurement: its ports, and that nobody measures one that is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.server.launch.supervisor import READY_LINE, ServeOptions
from onerec_trt.server.repository.store import Repository
from onerec_trt.tools.serving import background
from onerec_trt.tools.serving.background import served


def say_ready(say: Callable[[str], None]) -> None:
    say("onerec: version 1 is ready")
    say(f"{READY_LINE} 127.0.0.1: HTTP 1, gRPC 2, metrics 3")


def test_a_server_is_there_until_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def serve(repository: Repository, options: ServeOptions, say: Callable[[str], None], stopped: threading.Event) -> None:
        say_ready(say)
        stopped.wait()
        ended.set()

    monkeypatch.setattr(background, "serve", serve)
    with served(Repository(tmp_path), None) as ports:
        assert ports == {"http": 1, "grpc": 2, "metrics": 3}
        assert not ended.is_set()
    assert ended.is_set()


@pytest.mark.parametrize("ready", [True, False])
def test_a_server_that_ends_by_itself_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: bool) -> None:
    def serve(repository: Repository, options: ServeOptions, say: Callable[[str], None], stopped: threading.Event) -> None:
        if ready:
            say_ready(say)
        raise ArtifactError("the server ended with code -9")

    monkeypatch.setattr(background, "serve", serve)
    with pytest.raises(ArtifactError, match="ended with code -9"), served(Repository(tmp_path), None):
        assert ready
