"""Batching follows measured times, says so where there are none, and takes no times of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.artifacts import write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.server.repository.batching import BatchTimes, batching, read_times

# 4B-A0.5B on an H100: rates of 155, 492 and 659 requests/s
MEASURED = {1: 6.4, 8: 16.3, 32: 48.5}


def times(milliseconds: dict[int, float]) -> BatchTimes:
    return BatchTimes(model_sha256="a", context=512, milliseconds=milliseconds)


def test_the_smallest_batch_with_nearly_the_best_rate_is_preferred() -> None:
    assert batching(32, times(MEASURED)).preferred == 32
    chosen = batching(32, times({1: 10.0, 8: 20.0, 16: 38.5, 32: 76.0}))  # 100, 400, 416 and 421 requests/s
    assert (chosen.max_batch, chosen.preferred, chosen.max_queue, chosen.context) == (32, 8, 400, 512)
    assert chosen.why == "measured with contexts of 512: batches of 8 reach 95 % of 421 requests/s, the best rate"


def test_a_queue_has_a_limit_only_where_it_was_measured_and_is_wanted() -> None:
    assert batching(32, times(MEASURED)).max_queue == 660, "what is answered in one second"
    assert batching(32, times(MEASURED), gpus=2).max_queue == 1320
    unlimited = batching(32, times(MEASURED), limited=False)
    assert (unlimited.preferred, unlimited.max_queue) == (32, 0)
    assert unlimited.why.endswith("the best rate; any queue")


def test_batches_beyond_what_the_model_takes_do_not_count() -> None:
    assert batching(8, times(MEASURED)).preferred == 8


def test_without_times_it_says_that_nothing_was_measured() -> None:
    chosen = batching(16, None)
    assert (chosen.max_batch, chosen.preferred, chosen.max_queue) == (16, 16, 0)
    assert chosen.why.startswith("not measured: batches of up to 16 requests, any queue; measure with `onerec-trt dev batch-times`")


def test_a_benchmarks_results_of_this_plan_are_read(tmp_path: Path) -> None:
    def result(plan: str | None, batch: int, context: int, median: float) -> dict[str, Any]:
        return {"plan_sha256": plan, "batch": batch, "context": context, "latency_ms": {"median": median}}

    results = [result("a", 1, 512, 6.4), result("a", 8, 512, 16.3), result("a", 8, 3000, 20.0), result("b", 32, 512, 1.0)]
    write_json(tmp_path / "bench.json", {"results": [*results, result(None, 32, 512, 100.0)]})
    assert read_times(tmp_path / "bench.json", "a") == times({1: 6.4, 8: 16.3})
    with pytest.raises(ArtifactError, match="no result of this plan"):
        read_times(tmp_path / "bench.json", "c")
    with pytest.raises(ArtifactError, match=r"no measured times of batches: milliseconds: .* at least 2 items"):
        read_times(tmp_path / "bench.json", "b")


def test_times_of_another_model_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "times.json", times(MEASURED).model_dump(mode="json"))
    assert read_times(tmp_path / "times.json", "a").milliseconds == MEASURED
    with pytest.raises(ArtifactError, match="measured with another model"):
        read_times(tmp_path / "times.json", "b")
    (tmp_path / "times.json").write_text("[]")
    with pytest.raises(ArtifactError, match="these are no measured times"):
        read_times(tmp_path / "times.json", "a")


NO_TIMES = (
    '{"results": 5}',
    '{"results": {"a": 1}}',
    '{"results": [{"plan_sha256": "a"}]}',
    *(f'{{"model_sha256": "a", "context": 5, "milliseconds": {{{first}, "2": 3}}}}' for first in ('"1": 0', '"0": 1', '"1": -4')),
    *(f'{{"model_sha256": "a", "context": 5, "milliseconds": {{"1": {number}, "2": 3}}}}' for number in ("NaN", "Infinity", '"fast"')),
)


@pytest.mark.parametrize("content", NO_TIMES)
def test_what_cannot_be_a_time_is_refused(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "times.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"these are no measured times of batches: (results|milliseconds)"):
        read_times(path, "a")
