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
    first, second, elsewhere = GpuTurns(server, 0, "m-1"), GpuTurns(server, 0, "m-2"), GpuTurns(server, 1, "m-1")
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
    first, second = GpuTurns(server, 0, "m-1"), GpuTurns(server, 0, "m-1")
    with pytest.raises(RuntimeError), first.turn():
        raise RuntimeError
    with second.turn():
        pass
    turn = first.turn()
    turn.__enter__()
    first.line_up()
    for file in (first._running, first._next):
        os.close(file)  # as the end of its process does
    first._running, first._next = (os.open(os.devnull, os.O_RDWR) for _ in range(2))
    assert not second.others_lined_up()
    with second.turn():
        pass


def test_others_see_when_a_turn_is_expected_to_end(server: int) -> None:
    first, second = GpuTurns(server, 0, "m-1"), GpuTurns(server, 0, "m-1")
    assert second.remaining() == 0
    with first.turn(expected=100.0):
        assert 0 < second.remaining() <= 100
    assert second.remaining() == 0
    with first.turn():
        assert second.remaining() == 0, "nobody knows how long it takes"


def test_who_has_a_batch_for_the_next_turn_stands_in_line_until_it_has_the_turn(server: int) -> None:
    first, second, third = (GpuTurns(server, 0, "m-1") for _ in range(3))
    assert not first.others_lined_up()
    second.line_up()
    third.line_up()
    second.leave()
    assert first.others_lined_up(), "the third one"
    with third.turn():
        assert not first.others_lined_up()
    elsewhere = GpuTurns(server, 0, "m-2")
    elsewhere.line_up()
    assert not first.others_lined_up(), "another version has another queue"


def test_the_files_are_removed_with_what_else_a_server_leaves(server: int) -> None:
    GpuTurns(server, 3, "m-1")
    paths = [SHARED_MEMORY / f"{region_prefix(server)}gpu3{which}" for which in ("", "-m-1")]
    assert all(path.exists() for path in paths)
    remove_leftovers()
    assert not any(path.exists() for path in paths)
