"""Turns on a GPU: one instance at a time on each, and a lock that nobody keeps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from onerec_trt.server.launch.shared_memory import SHARED_MEMORY, region_prefix, remove_leftovers
from onerec_trt.server.python_backend.gpu_turns import GpuTurns


@pytest.fixture
def server() -> Iterator[int]:
    """This process in the place of a server: tests beside this one leave its files alone."""
    yield os.getpid()
    remove_leftovers()


def test_instances_on_one_gpu_wait_for_each_other_and_for_nobody_else(server: int) -> None:
    first, second, elsewhere = GpuTurns(server, 0), GpuTurns(server, 0), GpuTurns(server, 1)
    order: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with second.turn():
            order.append("second")

    thread = threading.Thread(target=wait)
    with first.turn():
        thread.start()
        waiting.wait()
        with elsewhere.turn():
            order.append("elsewhere")
        thread.join(0.1)
        order.append("first ends")
    thread.join()
    assert order == ["elsewhere", "first ends", "second"]


def test_an_instance_that_fails_or_is_gone_gives_its_turn_away(server: int) -> None:
    first, second = GpuTurns(server, 0), GpuTurns(server, 0)
    with pytest.raises(RuntimeError), first.turn():
        raise RuntimeError
    with second.turn():
        pass
    turn = first.turn()
    turn.__enter__()
    os.close(first._file)  # as the end of its process does
    first._file = os.open(os.devnull, os.O_RDONLY)
    with second.turn():
        pass


def test_the_file_is_removed_with_what_else_a_server_leaves(server: int) -> None:
    GpuTurns(server, 3)
    path = SHARED_MEMORY / f"{region_prefix(server)}gpu3"
    assert path.exists()
    remove_leftovers()
    assert not path.exists()
