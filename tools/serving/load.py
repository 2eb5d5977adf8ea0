"""Load on a served model from processes of its own: closed loops, or random arrivals; latency and rate as clients see them."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from ...core.artifacts import write_json
from ...core.errors import OnerecTrtError, RequestError
from ...core.graph_io import Role
from ...server.client import Client
from ...server.triton_api import Protocol
from ..outputs import require_own_json

_PATIENCE_S = 120.0  # until the slowest process has started
_PREPARED = 16  # different contexts that a process sends in turn
_OPEN_LOOP_THREADS = 64  # of a process: arrivals beyond them wait, and the wait counts


@dataclass(frozen=True)
class Load:
    """What is asked.

    Args:
        url: Host and port.
        protocol: `http` or `grpc`.
        model: Its name.
        clients: Requests at the same time in closed loops.
        rate: Requests per second of a Poisson process instead. None: closed loops.
        contexts: Tokens of a request, drawn from these.
        batch: Contexts that a request brings.
        seconds: How long answers count. In closed loops those that come within this time count; of random arrivals, those that
            arrive within it.
        processes: Among which the clients are divided; no more than there are clients.
        shared_memory: Clients in closed loops hand inputs over in /dev/shm.
        warm_up: Seconds of the same load before anything counts: the first requests find an empty server.
    """

    url: str
    protocol: Protocol
    model: str
    clients: int
    rate: float | None
    contexts: tuple[int, ...]
    batch: int
    seconds: float
    processes: int
    shared_memory: bool = False
    warm_up: float = 0.0


class LoadResult(BaseModel):
    """What clients saw: answered contexts per second, latencies in ms from arrival to items, and requests that failed."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    samples_ms: list[float]


def measure_load(load: Load, out: Path | None = None, meanwhile: Sequence[AbstractContextManager[Any]] = ()) -> LoadResult:
    """Ask for a while; writes the result with all samples as JSON where `out` is given.

    Args:
        load: What is asked.
        out: The JSON file. Default: none.
        meanwhile: Entered when all processes begin to ask, left when the last answer is there.

    Raises:
        RequestError: The server cannot be reached, or answered nothing.
        ArtifactError: `out` is another kind of file.
    """
    if out is not None:
        require_own_json(out, ("samples_ms",))
    load = replace(load, processes=min(load.processes, load.clients))
    Client(load.url, load.model, protocol=load.protocol).close()  # a wrong address is said here, and not by every process
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(load.processes + 1)
    with context.Pool(load.processes, _share, (together,)) as pool, ExitStack() as watching:
        asking = pool.starmap_async(_one_process, [(load, number) for number in range(load.processes)])
        with suppress(threading.BrokenBarrierError):  # a process failed before it came there; its error is raised below
            together.wait(_PATIENCE_S)
        for each in meanwhile:
            watching.enter_context(each)
        parts = asking.get()
    samples = [sample for answered, _ in parts for sample in answered]
    failed = sum(failures for _, failures in parts)
    if len(samples) < 2:
        raise RequestError(f"{len(samples)} requests were answered and {failed} failed", where=load.url, hint="look at the server's log")
    percentiles = statistics.quantiles(samples, n=100)
    result = LoadResult(
        requests_per_s=len(samples) * load.batch / load.seconds,
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        failed=failed,
        samples_ms=[round(sample, 3) for sample in samples],
    )
    if out is not None:
        write_json(out, result.model_dump(mode="json"))
    return result


_together: Any = None  # a barrier of this process and all that ask, in each of them


def _share(barrier: Any) -> None:
    global _together
    _together = barrier


def _one_process(load: Load, number: int) -> tuple[list[float], int]:
    """Latencies in ms of what counts, and how many requests failed."""
    meter = _Meter(load, number)
    if load.rate is not None:
        meter.open_loop(load.rate / load.processes)
    else:
        meter.closed_loops(len(range(number, load.clients, load.processes)))
    return meter.samples, meter.failed


class _Meter:
    """One process's share of a load. Every thread has a connection of its own."""

    def __init__(self, load: Load, number: int) -> None:
        self._load, self._random = load, np.random.default_rng(number)
        self._local = threading.local()
        self._lock = threading.Lock()
        self.samples: list[float] = []
        self.failed = 0
        self._prepared = list(self._requests())
        self._begin = self._end = 0.0

    def _start(self) -> None:
        """From now on all processes ask, and after the warm-up it counts; one that began alone would find the server idle."""
        _together.wait(_PATIENCE_S)
        self._begin = time.perf_counter() + self._load.warm_up
        self._end = self._begin + self._load.seconds

    def closed_loops(self, clients: int) -> None:
        connected = threading.Barrier(clients, self._start)
        with ThreadPoolExecutor(clients) as pool:
            for loop in [pool.submit(self._loop, connected) for _ in range(clients)]:
                loop.result()

    def open_loop(self, rate: float) -> None:
        self._start()
        arrival = time.perf_counter()
        with ThreadPoolExecutor(_OPEN_LOOP_THREADS) as pool:
            while (arrival := arrival + self._random.exponential(1 / rate)) < self._end:
                time.sleep(max(0.0, arrival - time.perf_counter()))
                pool.submit(self._ask, arrival)

    def _loop(self, connected: threading.Barrier) -> None:
        with self._client():  # gives shared memory back at the end
            connected.wait(_PATIENCE_S)
            while (now := time.perf_counter()) < self._end:
                self._ask(now)

    def _ask(self, arrival: float) -> None:
        features_BSF, lengths_B3 = self._prepared[int(arrival * 1e6) % len(self._prepared)]
        try:
            self._client().recommend_batch(features_BSF, lengths_B3)
        except OnerecTrtError:
            with self._lock:
                self.failed += 1
            return
        now = time.perf_counter()
        if self._begin <= (now if self._load.rate is None else arrival) <= self._end:
            with self._lock:
                self.samples.append((now - arrival) * 1e3)

    def _client(self) -> Client:
        if not hasattr(self._local, "client"):
            load = self._load
            self._local.client = Client(load.url, load.model, protocol=load.protocol, shared_memory=load.shared_memory)
        client: Client = self._local.client
        return client

    def _requests(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Random contexts, all tokens in the last pathway."""
        width = self._client().io.tensor(Role.CONTEXT_FEATURES).dims[-1]
        for _ in range(max(2, _PREPARED // self._load.batch)):
            tokens = int(self._random.choice(self._load.contexts))
            features_BSF = self._random.standard_normal((self._load.batch, tokens, width)).astype(np.float16)
            yield features_BSF, np.tile(np.array([0, 0, tokens], np.int64), (self._load.batch, 1))


def describe(result: LoadResult) -> str:
    """One line for the terminal."""
    return f"{result.requests_per_s:.1f} requests/s, p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms, {result.failed} failed"
