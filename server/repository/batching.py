"""How many requests the server puts into a batch: from measured times t(B), or stated as not measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ...core.artifacts import read_json
from ...core.errors import ArtifactError, first_problem

NEARLY_BEST = 0.95  # of the best rate: a batch that reaches it is large enough, and smaller ones answer sooner
PATIENCE_S = 1.0  # a queue holds what is answered within this time; the server refuses more at once

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BatchTimes(BaseModel):
    """Milliseconds that a batch of so many requests takes, from inputs to items.

    Args:
        model_sha256: The plan or ONNX file that was timed.
        context: Tokens of every request.
        milliseconds: Median by requests of a batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_sha256: str
    context: int = Field(ge=1)
    milliseconds: dict[PositiveInt, Milliseconds] = Field(min_length=2)

    @property
    def rates(self) -> dict[int, float]:
        """Requests per second by requests of a batch, ascending."""
        return {batch: batch / self.milliseconds[batch] * 1e3 for batch in sorted(self.milliseconds)}


class _Latency(BaseModel):
    median: float


class _Result(BaseModel):
    """Of a candidate of `bench` at one shape: what is read of it. Only plans have a hash."""

    plan_sha256: str | None = None
    batch: int
    context: int
    latency_ms: _Latency


class _Benchmark(BaseModel):
    results: list[_Result]


class Batching(BaseModel):
    """What the dynamic batcher does. It never waits for more requests: beams make one request hundreds of rows, so waiting only delays.

    Args:
        max_batch: Most requests that a client may send at once, and that a batch may hold.
        preferred: Requests that a batch is filled to from a longer queue.
        max_queue: Requests that may wait. 0: any number, for as long as it takes.
        context: Tokens of the requests that this was measured with. None: not measured.
        why: How this was chosen, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch: int
    preferred: int
    max_queue: int
    context: int | None = None
    why: str


def batching(max_batch: int, times: BatchTimes | None, gpus: int = 1, *, limited: bool = True) -> Batching:
    """The smallest batch whose measured rate is nearly the best; the largest that fits where nothing was measured.

    Args:
        max_batch: The largest that fits.
        times: Measured on one GPU.
        gpus: That answer one queue.
        limited: Whether the queue has a limit where times were measured.
    """
    rates = {} if times is None else {batch: rate for batch, rate in times.rates.items() if batch <= max_batch}
    if times is None or not rates:
        why = (
            f"not measured: batches of up to {max_batch} requests, any queue; measure with `onerec-trt dev batch-times`, pass it as --times"
        )
        return Batching(max_batch=max_batch, preferred=max_batch, max_queue=0, why=why)
    best = max(rates.values())
    preferred = next(batch for batch, rate in rates.items() if rate >= NEARLY_BEST * best)
    queue = max(preferred, math.ceil(rates[preferred] * gpus * PATIENCE_S)) if limited else 0
    share = f"{rates[preferred] / best:.0%}".replace("%", " %")
    why = f"measured with contexts of {times.context}: batches of {preferred} reach {share} of {best:.0f} requests/s, the best rate"
    why += "" if limited else "; any queue"
    return Batching(max_batch=max_batch, preferred=preferred, max_queue=queue, context=times.context, why=why)


def read_times(path: Path, model_sha256: str) -> BatchTimes:
    """Measured times of a model, from what `dev batch-times` or `bench` writes.

    Args:
        path: The JSON file.
        model_sha256: The model they must be of.

    Raises:
        ArtifactError: The file is malformed, is of another model, or has fewer than two batches of it.
    """
    values = read_json(path)
    try:
        if isinstance(values, dict) and "results" in values:
            values = _of_benchmark(_Benchmark.model_validate(values), model_sha256, path)
        times = BatchTimes.model_validate(values)
    except ValidationError as error:
        hint = "give a file of `onerec-trt dev batch-times` or `onerec-trt bench` with at least two batch sizes"
        raise ArtifactError(f"these are no measured times of batches: {first_problem(error)}", where=str(path), hint=hint) from None
    if times.model_sha256 != model_sha256:
        hint = "measure this model: `onerec-trt dev batch-times`"
        raise ArtifactError("these times were measured with another model", where=str(path), hint=hint)
    return times


def _of_benchmark(benchmark: _Benchmark, model_sha256: str, path: Path) -> dict[str, Any]:
    """The longest-measured context among a benchmark's results of the plan, that is the one with most batch sizes."""
    by_context: dict[int, dict[int, float]] = {}
    for result in benchmark.results:
        if result.plan_sha256 == model_sha256:
            by_context.setdefault(result.context, {})[result.batch] = result.latency_ms.median
    if not by_context:
        raise ArtifactError("the benchmark holds no result of this plan", where=str(path), hint="run `onerec-trt dev batch-times`")
    context = max(by_context, key=lambda tokens: (len(by_context[tokens]), tokens))
    return {"model_sha256": model_sha256, "context": context, "milliseconds": by_context[context]}
