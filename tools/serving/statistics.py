"""What a server itself says of a load: how long requests waited in its queue, how large batches were, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...server.triton_api import client_module

_NS_PER_MS = 1e6
_PAUSE_S, _LOOKS = 0.02, 50  # the server counts soon after it has answered; a batch that failed may lack in one count for good


class BatchStatistics(BaseModel):
    """Batches of one size.

    Args:
        batches: How many ran.
        input_ms: Mean time in which the server laid out the inputs of one.
        infer_ms: In the backend: the GPU, waiting for it, and until the next batch is taken.
        output_ms: Until its answers were handed over.
    """

    model_config = ConfigDict(extra="forbid")

    batches: int
    input_ms: float
    infer_ms: float
    output_ms: float


class ServerStatistics(BaseModel):
    """Counted between two looks.

    Args:
        requests: That the model answered.
        queue_ms: Mean time of a request in the server's queue.
        by_size: Batches by contexts in them.
    """

    model_config = ConfigDict(extra="forbid")

    requests: int
    queue_ms: float
    by_size: dict[int, BatchStatistics]


class StatisticsWatch:
    """Counts while its block runs.

    Args:
        url: Host and port of HTTP.
        model: Its name.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._before: Mapping[str, Any] = {}
        self._after: Mapping[str, Any] = {}

    def __enter__(self) -> StatisticsWatch:
        self._before = self._look()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The server counts a batch a moment after it has answered, so it is looked at until nothing changes any more."""
        self._after = self._look()
        for _ in range(_LOOKS):
            time.sleep(_PAUSE_S)
            before, self._after = self._after, self._look()
            if before == self._after:
                break

    def counted(self) -> ServerStatistics:
        """What was counted in the block, which has ended."""
        return difference(self._before, self._after)

    def _look(self) -> Mapping[str, Any]:
        """What is counted now; looks again where the requests of a batch are counted already, and it itself is not."""
        client = client_module("http").InferenceServerClient(self._url)
        try:
            for _ in range(_LOOKS):
                (found,) = client.get_inference_statistics(self._model)["model_stats"]
                if _whole(found):
                    break
                time.sleep(_PAUSE_S)
        finally:
            client.close()
        statistics: Mapping[str, Any] = found
        return statistics


def _whole(statistics: Mapping[str, Any]) -> bool:
    """Whether batches hold as many contexts as requests do."""
    in_batches = sum(int(each["batch_size"]) * int(each["compute_infer"]["count"]) for each in statistics["batch_stats"])
    return in_batches == int(statistics["inference_count"])


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> ServerStatistics:
    """From two answers of the server's statistics API, which has sums in ns since the model was loaded."""
    earlier = {each["batch_size"]: each for each in before["batch_stats"]}
    by_size: dict[int, BatchStatistics] = {}
    for later in sorted(after["batch_stats"], key=lambda each: int(each["batch_size"])):
        size = int(later["batch_size"])
        taken = {phase: _since(earlier.get(size, {}), later, phase) for phase in ("compute_input", "compute_infer", "compute_output")}
        if batches := taken["compute_infer"][0]:
            means = {f"{phase.removeprefix('compute_')}_ms": ns / batches / _NS_PER_MS for phase, (_, ns) in taken.items()}
            by_size[size] = BatchStatistics(batches=batches, **means)
    requests, queue_ns = _since(before["inference_stats"], after["inference_stats"], "queue")
    return ServerStatistics(requests=requests, queue_ms=queue_ns / max(1, requests) / _NS_PER_MS, by_size=by_size)


def _since(before: Mapping[str, Any], after: Mapping[str, Any], phase: str) -> tuple[int, int]:
    """How often, and how many ns."""
    earlier, later = before.get(phase, {}), after.get(phase, {})
    return int(later.get("count", 0)) - int(earlier.get("count", 0)), int(later.get("ns", 0)) - int(earlier.get("ns", 0))
