"""When an instance takes its next batch, with a clock and a GPU that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from onerec_trt.server.python_backend import pacing
from onerec_trt.server.python_backend.pacing import Pacing

FULL = 8


class Turns:
    """Of a GPU that another instance has until `end`, and wants next while `others` says so."""

    def __init__(self) -> None:
        self.now, self.end, self.others = 100.0, 0.0, False
        self.lined_up = False
        self.expected: list[float] = []
        self.takes = 0.5

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def line_up(self) -> None:
        self.lined_up = True

    def leave(self) -> None:
        self.lined_up = False

    def others_lined_up(self) -> bool:
        assert not self.lined_up, "it would see itself"
        return self.others

    def remaining(self) -> float:
        return max(0.0, self.end - self.now)

    @contextmanager
    def turn(self, expected: float) -> Iterator[None]:
        self.leave()
        self.expected.append(expected)
        yield


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    made = Turns()
    monkeypatch.setattr(pacing, "time", made)
    return made


def run(instance: Pacing, turns: Turns, requests: int, seconds: float = 0.5) -> None:
    """A turn of the instance."""
    with instance.turn(requests):
        turns.now += seconds


@pytest.fixture
def instance(turns: Turns) -> Pacing:
    unit: Any = turns
    return Pacing(unit, FULL)


def test_an_instance_is_back_at_once_where_nobody_else_has_the_gpu(turns: Turns, instance: Pacing) -> None:
    assert not turns.lined_up, "not before it is warm"
    instance.back()
    run(instance, turns, 3)
    assert not instance.early()
    instance.back()
    assert turns.lined_up


def test_while_another_turn_runs_it_comes_back_when_there_is_just_time_to_prepare(turns: Turns, instance: Pacing) -> None:
    run(instance, turns, 3)
    turns.end = turns.now + 0.3
    assert instance.early()
    instance.hold_off()
    assert turns.remaining() == pytest.approx(instance.lead, abs=0.002)
    assert not instance.early()


def test_a_turn_that_ends_early_ends_the_wait(turns: Turns, instance: Pacing) -> None:
    run(instance, turns, 3)
    turns.end = before = turns.now + 1000.0

    def sleep(seconds: float) -> None:
        turns.now += seconds
        turns.end = 0.0

    turns.sleep = sleep  # type: ignore[method-assign]
    instance.hold_off()
    assert turns.now < before - 900


def test_who_stands_in_line_and_never_has_a_turn_is_not_waited_for_long(turns: Turns, instance: Pacing) -> None:
    run(instance, turns, 3)
    turns.others = True
    before = turns.now
    assert instance.early()
    instance.hold_off()
    assert turns.now - before == pytest.approx(instance.lead, abs=0.002)


def test_after_a_full_batch_it_is_never_early(turns: Turns, instance: Pacing) -> None:
    run(instance, turns, FULL)
    turns.end, turns.others = turns.now + 0.3, True
    assert not instance.early()


def test_it_learns_how_long_it_takes_to_prepare_a_batch(turns: Turns, instance: Pacing) -> None:
    def taken_late(requests: int, preparation: float) -> None:
        turns.end = turns.now + 5.0
        instance.hold_off()
        turns.now += preparation
        run(instance, turns, requests)

    run(instance, turns, 3)
    taken_late(3, 0.1)
    assert instance.lead == pytest.approx(0.2), "with caution"
    taken_late(3, 0.01)
    assert instance.lead == pytest.approx(0.18), "the slowest one is forgotten slowly"
    taken_late(1, 4.0)
    assert instance.lead == pytest.approx(0.18), "a single request may have come late itself"
    run(instance, turns, 3)
    assert instance.lead == pytest.approx(0.18), "this batch was not taken late"


def test_a_turn_is_expected_to_take_as_long_as_the_last_one_of_about_its_size(turns: Turns, instance: Pacing) -> None:
    for requests, seconds in ((2, 0.2), (7, 0.7), (3, 0.3)):
        run(instance, turns, requests, seconds)
    assert turns.expected == pytest.approx([0.0, 0.2, 0.2])
    run(instance, turns, 6)
    assert turns.expected[-1] == pytest.approx(0.7)
