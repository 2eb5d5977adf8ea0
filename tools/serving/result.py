"""What a measurement of a served model holds, and the figures that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from .load import LoadResult
from .statistics import ServerStatistics
from .swaps import Swaps

SATURATION = 0.8  # of the highest rate seen: how many requests arrive at random times


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MeasuredLoad(_Part):
    """One load on one server.

    Args:
        name: What it is, for people.
        instances: Of the model, on each GPU.
        gpus: That the model is served on; 0 for a CPU.
        clients: Requests at the same time in closed loops.
        rate: Requests per second of random arrivals instead.
        contexts: Tokens of a request, drawn from these.
        batch: Contexts that a request brings.
        shared_memory: Whether clients hand inputs over in /dev/shm, and not over gRPC.
        seconds: How long answers counted.
        gpu_busy: Share of time in which a kernel ran, of each GPU.
        result: What clients saw.
        server: What the server counted, the warm-up included. None: in files of earlier revisions.
        excluded: Items that each context must not get.
        swaps: Between catalogues meanwhile. None: there were none.
    """

    name: str
    instances: int
    gpus: int
    clients: int
    rate: float | None
    contexts: tuple[int, ...]
    batch: int
    shared_memory: bool
    seconds: float
    gpu_busy: list[float]
    result: LoadResult
    server: ServerStatistics | None = None
    excluded: int = 0
    swaps: Swaps | None = None


class BareRate(_Part):
    """The largest batch in the bare runtime, from inputs in memory to items in memory: how long it took, and its requests per second."""

    batch_ms: float
    requests_per_s: float


class Bare(_Part):
    """The bare runtime.

    Args:
        first: Median of its first samples, in turns with smaller batches: the GPU's clocks are higher than under a load.
        sustained: Mean of batches back to back, for as long as a load lasts.
    """

    first: BareRate
    sustained: BareRate


class Summary(_Part):
    """The figures that matter.

    Args:
        bare: The largest batch in the bare runtime. None: in files of earlier revisions, which have first samples only.
        bare_batch_ms: That, sustained; in files of earlier revisions of first samples.
        bare_requests_per_s: Likewise its rate, from which the losses are computed.
        requests_per_s: The highest rate of the served model on one GPU, or on the CPU: closed loops of one-context requests, without
            rules and swaps.
        overhead_batch_32: Share of the bare rate that is lost at that.
        overhead_shared_memory: Likewise where no payload goes over a connection.
        p50_ms: At 80 % of that rate, arriving at random times.
        p99_ms: Likewise.
        p99_over_batch: That, as a multiple of the bare runtime's first samples, which are the shorter ones.
        two_gpu_scaling: Rate on two GPUs over the rate on one, with the same clients for each. None: there was one.
    """

    bare: Bare | None = None
    bare_batch_ms: float
    bare_requests_per_s: float
    requests_per_s: float
    overhead_batch_32: float
    overhead_shared_memory: float
    p50_ms: float
    p99_ms: float
    p99_over_batch: float
    two_gpu_scaling: float | None


class ServingResult(_Part):
    """A measurement.

    Args:
        environment: Machine, driver, versions, commit.
        model: What was served.
        context: Tokens of every request, but for the mixed load.
        parameters: Settings of the Python backend other than the defaults.
        catalogues: Items and semantic IDs of each catalogue by its digest, that of the first server first. Empty: beams are open.
        times_ms: First samples of the bare runtime by requests of a batch.
        sustained_ms: Its largest batches back to back, after a warm-up. None: in files of earlier revisions.
        payload_ms: What the payload of the largest batch costs, by step (payload.py). None: likewise.
        batching: What the server's batching follows from.
        loads: In the order of measuring.
        summary: None before random arrivals were measured.
    """

    environment: dict[str, Any]
    model: dict[str, Any]
    context: int
    parameters: dict[str, str] = {}
    catalogues: dict[str, dict[str, int]] = {}
    times_ms: dict[int, list[float]]
    sustained_ms: list[float] | None = None
    payload_ms: dict[str, list[float]] | None = None
    batching: str
    loads: list[MeasuredLoad]
    summary: Summary | None


def bare_rates(times_ms: dict[int, list[float]], sustained_ms: Sequence[float]) -> Bare:
    """Of the largest batch, from first samples by requests of a batch, and from batches back to back."""
    largest = max(times_ms)
    first_ms, mean_ms = statistics.median(times_ms[largest]), statistics.mean(sustained_ms)
    first, sustained = (BareRate(batch_ms=each, requests_per_s=largest / each * 1e3) for each in (first_ms, mean_ms))
    return Bare(first=first, sustained=sustained)


def summarize(times_ms: dict[int, list[float]], sustained_ms: Sequence[float] | None, loads: Sequence[MeasuredLoad]) -> Summary | None:
    """The figures of a measurement; None before random arrivals were measured."""
    arrivals = next((load for load in loads if load.rate is not None), None)
    if arrivals is None:
        return None
    first_ms = statistics.median(times_ms[max(times_ms)])
    bare = bare_rates(times_ms, sustained_ms) if sustained_ms is not None else None
    batch_ms = bare.sustained.batch_ms if bare is not None else first_ms
    bare_rate = max(times_ms) / batch_ms * 1e3
    best = saturating(loads)
    double = [load for load in loads if load.gpus == 2]
    return Summary(
        bare=bare,
        bare_batch_ms=batch_ms,
        bare_requests_per_s=bare_rate,
        requests_per_s=best.result.requests_per_s,
        overhead_batch_32=1 - best.result.requests_per_s / bare_rate,
        overhead_shared_memory=1 - max(load.result.requests_per_s for load in loads if load.shared_memory) / bare_rate,
        p50_ms=arrivals.result.p50_ms,
        p99_ms=arrivals.result.p99_ms,
        p99_over_batch=arrivals.result.p99_ms / first_ms,
        two_gpu_scaling=double[0].result.requests_per_s / best.result.requests_per_s if double else None,
    )


def saturating(loads: Sequence[MeasuredLoad]) -> MeasuredLoad:
    """The closed loops of one-context requests, all of one length, with the highest rate on one GPU or on the CPU."""
    closed = [load for load in loads if load.rate is None and load.gpus < 2 and not load.shared_memory]
    plain = [load for load in closed if load.swaps is None and not load.excluded]
    return max((load for load in plain if load.batch == 1 and len(load.contexts) == 1), key=lambda load: load.result.requests_per_s)
