"""What a server counts of a load, whose counts follow its answers: looked at until they are whole, and change no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from onerec_trt.tools.serving import statistics
from onerec_trt.tools.serving.statistics import BatchStatistics, ServerStatistics, StatisticsWatch

MS = 1_000_000


def counted(requests: int, batches: dict[int, int]) -> dict[str, Any]:
    """An answer of the statistics API: each request waited for 2 ms, each batch took 1, 10 and 3 ms."""

    def phase(count: int, milliseconds: int) -> dict[str, int]:
        return {"count": count, "ns": count * milliseconds * MS}

    sizes = [
        {"batch_size": size, "compute_input": phase(count, 1), "compute_infer": phase(count, 10), "compute_output": phase(count, 3)}
        for size, count in batches.items()
    ]
    return {"inference_count": requests, "inference_stats": {"queue": phase(requests, 2)}, "batch_stats": sizes}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server answers, one look after the other; the last answer stays."""
    found: list[dict[str, Any]] = []
    client = SimpleNamespace(
        get_inference_statistics=lambda model: {"model_stats": [found.pop(0) if len(found) > 1 else found[0]]}, close=lambda: None
    )
    monkeypatch.setattr(statistics, "client_module", lambda protocol: SimpleNamespace(InferenceServerClient=lambda url: client))
    monkeypatch.setattr(statistics.time, "sleep", lambda seconds: None)
    return found


def test_a_batch_that_is_counted_after_its_requests_is_waited_for(answers: list[dict[str, Any]]) -> None:
    answers += [counted(5, {1: 4}), counted(5, {1: 5}), counted(9, {1: 5}), counted(9, {1: 5, 4: 1})]
    with StatisticsWatch("", "onerec") as watch:
        pass
    of_four = BatchStatistics(batches=1, input_ms=1.0, infer_ms=10.0, output_ms=3.0)
    assert watch.counted() == ServerStatistics(requests=4, queue_ms=2.0, by_size={4: of_four})


def test_what_is_counted_late_counts(answers: list[dict[str, Any]]) -> None:
    answers += [counted(0, {}), counted(1, {1: 1}), counted(3, {1: 3})]
    with StatisticsWatch("", "onerec") as watch:
        pass
    assert watch.counted().requests == 3


def test_a_batch_that_is_never_counted_is_not_waited_for_for_ever(answers: list[dict[str, Any]]) -> None:
    answers += [counted(7, {1: 4})]
    with StatisticsWatch("", "onerec") as watch:
        pass
    assert watch.counted().requests == 0
