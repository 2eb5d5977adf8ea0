"""Staging in pieces, with the CPU in place of CUDA: contents of any size and form arrive whole, no piece is overwritten unread."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from onerec_trt.runtime import staging
from onerec_trt.runtime.staging import Staging
from torch import Tensor


class Stream:
    def wait_stream(self, _stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event:
    """Counts waits that nothing was recorded for since the last."""

    def __init__(self) -> None:
        self.waited = True

    def synchronize(self) -> None:
        self.waited = True

    def record(self) -> None:
        assert self.waited, "a piece was filled again before it was read"
        self.waited = False


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def empty(*shape: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Tensor:
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(staging, "PIECE", 64)


def test_contents_of_any_size_arrive_whole():
    contents = {
        "several pieces": torch.arange(50, dtype=torch.int32).view(5, 10),
        "one piece": torch.arange(8),
        "less": torch.tensor([7], dtype=torch.int16),
        "nothing": torch.empty(0, dtype=torch.int32),
        "every second": torch.arange(100, dtype=torch.int32)[::2],
    }
    shared = Staging()
    for _ in range(2):
        copies = shared.copies(contents)
        assert copies.keys() == contents.keys()
        assert all(torch.equal(copies[name], content) and copies[name] is not content for name, content in contents.items())


def test_what_was_staged_does_not_change_with_its_source():
    source = torch.arange(40, dtype=torch.int32)
    copy = Staging().copies({"index": source})["index"]
    source.zero_()
    assert copy.tolist() == list(range(40))
