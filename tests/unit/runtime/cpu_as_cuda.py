"""The CPU in place of CUDA: streams and events that do everything at once, and remember what was asked of them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch


class Stream:
    """Runs everything at once; remembers what was asked of it."""

    cuda_stream = 0
    asked: list[str]

    def wait_stream(self, stream: Any) -> None:
        self.asked.append("wait")

    def synchronize(self) -> None:
        self.asked.append("synchronize")


class Event:
    """Is done at once; remembers in what order events were recorded and waited for, by their numbers."""

    made: int
    asked: list[tuple[str, int]]

    def __init__(self, *, blocking: bool = False) -> None:
        self.number = Event.made
        Event.made += 1

    def record(self) -> None:
        self.asked.append(("record", self.number))

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.asked.append(("wait", self.number))


def use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.cuda` be the CPU until the test ends."""
    real = torch.empty
    Stream.asked, Event.asked, Event.made = [], [], 0

    def empty(*shape: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 35, 1 << 36))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
