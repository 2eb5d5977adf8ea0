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
from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import OPEN, ItemRules
from ...server.client import Client
from ...server.triton_api import Protocol
from ..bench.sampling import rounded
from ..outputs import require_own_json
from .answers import AnswerCheck, AnswerCounts, all_counts

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
        catalogues: Index files of all catalogues that may answer, where the model follows one: every answer is checked.
        excluded: Items of the first of them that each context must not get, drawn at random.
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
    catalogues: tuple[Path, ...] = ()
    excluded: int = 0


class LoadResult(BaseModel):
    """What clients saw: answered contexts per second, latencies in ms from arrival to items, and requests that failed.

    A rate of closed loops is the sum of those of the loops. In files of earlier revisions it is the number of answers over the time.
    `answers`: what they hold, where the model follows a catalogue.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    samples_ms: list[float]
    answers: AnswerCounts | None = None


def measure_load(load: Load, out: Path | None = None, meanwhile: Sequence[AbstractContextManager[Any]] = ()) -> LoadResult:
    """Ask for a while; writes the result with all samples as JSON where `out` is given.

    Args:
        load: What is asked.
        out: The JSON file. Default: none.
        meanwhile: Entered when all processes are about to ask, left when the last answer is there.

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
            together.wait(_PATIENCE_S)
        parts = asking.get()
    samples = [sample for part in parts for sample in part.samples_ms]
    failed = sum(part.failed for part in parts)
    if len(samples) < 2:
        raise RequestError(f"{len(samples)} requests were answered and {failed} failed", where=load.url, hint="look at the server's log")
    percentiles = statistics.quantiles(samples, n=100)
    result = LoadResult(
        requests_per_s=sum(part.requests_per_s for part in parts) * load.batch,
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        failed=failed,
        samples_ms=rounded(samples),
        answers=all_counts(part.answers for part in parts) if load.catalogues else None,
    )
    if out is not None:
        write_json(out, result.model_dump(mode="json"))
    return result


_together: Any = None  # a barrier of this process and all that ask, in each of them


def _share(barrier: Any) -> None:
    global _together
    _together = barrier


@dataclass(frozen=True)
class _Seen:
    """By one process: latencies of what counts, requests that failed, answers per second, and what they hold."""

    samples_ms: list[float]
    failed: int
    requests_per_s: float
    answers: AnswerCounts


def _one_process(load: Load, number: int) -> _Seen:
    meter = _Meter(load, number)
    if load.rate is not None:
        rate = meter.open_loop(load.rate / load.processes)
    else:
        rate = meter.closed_loops(len(range(number, load.clients, load.processes)))
    return _Seen(meter.samples, meter.failed, rate, meter.check.counts())


def loop_rate(answered: Sequence[float], seconds: float) -> float:
    """Answers per second of one closed loop.

    It is the rate from its first answer to its last one. Answers come batch by batch, so that a count over a fixed time would depend
    on how many batches happen to end within it.

    Args:
        answered: When they came, in seconds, ascending.
        seconds: How long they counted; what a single answer is divided by.
    """
    if len(answered) < 2:
        return len(answered) / seconds
    return (len(answered) - 1) / (answered[-1] - answered[0])


class _Meter:
    """One process's share of a load. Every thread has a connection of its own."""

    def __init__(self, load: Load, number: int) -> None:
        self._load, self._random = load, np.random.default_rng(number)
        self._local = threading.local()
        self._lock = threading.Lock()
        self.samples: list[float] = []
        self.failed = 0
        self._indexes = [ItemIndex.load(path) for path in load.catalogues]
        self.check = AnswerCheck(self._indexes)
        self._prepared = list(self._requests())
        self._started = self._begin = self._end = 0.0

    def _start(self) -> None:
        """From now on all processes ask, and after the warm-up it counts; one that began alone would find the server idle."""
        _together.wait(_PATIENCE_S)  # all are there
        _together.wait(_PATIENCE_S)  # what is counted meanwhile counts from the first request
        self._started = time.perf_counter()
        self._begin = self._started + self._load.warm_up
        self._end = self._begin + self._load.seconds

    def closed_loops(self, clients: int) -> float:
        """Answers per second."""
        connected = threading.Barrier(clients, self._start)
        with ThreadPoolExecutor(clients) as pool:
            loops = [pool.submit(self._loop, connected) for _ in range(clients)]
            return sum(loop_rate(loop.result(), self._load.seconds) for loop in loops)

    def open_loop(self, rate: float) -> float:
        """Answers per second, to requests that arrive at this rate."""
        self._start()
        arrival = self._started
        with ThreadPoolExecutor(_OPEN_LOOP_THREADS) as pool:
            asked = []
            while (arrival := arrival + self._random.exponential(1 / rate)) < self._end:
                time.sleep(max(0.0, arrival - time.perf_counter()))
                asked.append(pool.submit(self._ask, arrival))
            for each in asked:
                each.result()  # what went wrong with a request is counted; what went wrong here is raised
        return len(self.samples) / self._load.seconds

    def _loop(self, connected: threading.Barrier) -> list[float]:
        """When the answers that count came."""
        found: list[float] = []
        with self._client():  # gives shared memory back at the end
            connected.wait(_PATIENCE_S)
            while (now := time.perf_counter()) < self._end:
                if (answered := self._ask(now)) is not None:
                    found.append(answered)
        return found

    def _ask(self, arrival: float) -> float | None:
        """When the answer came. None: it does not count, or there was none."""
        features_BSF, lengths_B3, rules = self._prepared[int(arrival * 1e6) % len(self._prepared)]
        try:
            answers = self._client().recommend_batch(features_BSF, lengths_B3, rules)
        except OnerecTrtError:
            with self._lock:
                self.failed += 1
            return None
        now = time.perf_counter()
        if rules is not None:
            with self._lock:
                self.check.count(answers, rules)
        if not self._begin <= (now if self._load.rate is None else arrival) <= self._end:
            return None
        with self._lock:
            self.samples.append((now - arrival) * 1e3)
        return now

    def _client(self) -> Client:
        if not hasattr(self._local, "client"):
            load = self._load
            self._local.client = Client(load.url, load.model, protocol=load.protocol, shared_memory=load.shared_memory)
        client: Client = self._local.client
        return client

    def _requests(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[ItemRules] | None]]:
        """Random contexts, all tokens in the last pathway, and the rules of each where the model follows a catalogue."""
        width = self._client().io.tensor(Role.CONTEXT_FEATURES).dims[-1]
        for _ in range(max(2, _PREPARED // self._load.batch)):
            tokens = int(self._random.choice(self._load.contexts))
            features_BSF = self._random.standard_normal((self._load.batch, tokens, width)).astype(np.float16)
            yield features_BSF, np.tile(np.array([0, 0, tokens], np.int64), (self._load.batch, 1)), self._rules()

    def _rules(self) -> list[ItemRules] | None:
        load = self._load
        if not self._indexes:
            return None
        if not load.excluded:
            return [OPEN] * load.batch
        ids = self._indexes[0].arrays["items"]
        drawn = (ids[self._random.choice(len(ids), load.excluded, replace=False)] for _ in range(load.batch))
        return [ItemRules(excluded=each.astype(np.int64)) for each in drawn]


def describe(result: LoadResult) -> str:
    """One line for the terminal."""
    return f"{result.requests_per_s:.1f} requests/s, p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms, {result.failed} failed"
