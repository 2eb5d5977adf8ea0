"""Progress goes to standard error and never changes what it wraps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from onerec_trt.core.progress import announce, tracked


def test_tracked_hands_every_item_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked([3, 1, 2], "items")) == [3, 1, 2]
    assert capsys.readouterr().out == ""


def test_tracked_takes_what_has_no_length() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)

    assert list(tracked(numbers(), "items")) == [0, 1, 2]


def test_an_exception_inside_passes_through() -> None:
    def fail_at(number: int) -> None:
        for item in tracked([1, 2], "items"):
            if item == number:
                raise RuntimeError(f"inside {item}")

    with pytest.raises(RuntimeError, match="inside 2"):
        fail_at(2)


def test_without_a_terminal_a_line_says_what_begins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    announce("fp8-row [x] export begins")
    assert capsys.readouterr() == ("", "fp8-row [x] export begins\n")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal, which has bars
    announce("fp8-row export begins")
    assert capsys.readouterr() == ("", "")
