"""`onerec-trt dev serving`: a model served by the Python backend, beside the bare runtime on the same machine.

First t(B) of the bare runtime, which sets the batching, its largest batch back to back for as long as a load, and what the payload of that
batch costs. Then a server for each number of instances, and where there are two GPUs one with the last number on each of them. Each is
asked by clients in processes of their own; the one with most instances gets every load.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...core.artifacts import sha256, write_json
from ...core.errors import RequestError
from ...runtime.item_index import ItemIndex
from ...runtime.item_runner import ItemRunner
from ...runtime.machine import this_machine
from ...server.client import server_version
from ...server.repository.add import GRAPH_LIMITS, Options, add_version
from ...server.repository.batching import BatchTimes
from ...server.repository.served_io import follows_catalogue
from ...server.repository.store import Repository
from ...server.repository.version import VersionDescription
from ..bench.sampling import rounded
from ..environment import software
from ..outputs import require_own_json
from ..recommend import open_runner
from .background import served
from .batch_times import BareRunner, back_to_back_ms, samples_ms
from .busy import BusyWatch
from .load import Load, describe, measure_load
from .page import payload_table, table
from .payload import payload_ms
from .result import SATURATION, MeasuredLoad, ServingResult, saturating, summarize
from .statistics import StatisticsWatch
from .swaps import SwapWatch

BATCHES = (1, 2, 4, 8, 16, 32)
_TOOLS = ("onerec-trt", "tensorrt", "onnxruntime", "torch", "numpy", "tritonclient", "grpcio")
_PER_PROCESS = 8  # clients of a process
Say = Callable[[str], None]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Args:
        context: Tokens of every request, but for the mixed load.
        mixed: Tokens of the mixed load's requests.
        batches: Of t(B).
        samples: Of each, in turns.
        clients: Of one GPU in closed loops, and in a second load twice as many.
        seconds: Of each load, and of the bare runtime's batches back to back, after a warm-up of a sixth of that.
        arrival_seconds: Likewise, of the load at random times, whose p99 wants many requests.
        gpus: At most; fewer where fewer are visible.
        instances: Of each server on one GPU, in turn.
        parameters: Settings of the Python backend, such as `cuda_graphs`.
        any_queue: Let any number of requests wait in the servers.
        catalogues: Index files, of a model that follows a catalogue. The first one is served; where there are more, the server with
            most instances also swaps between them under load.
        excluded: Items that each context of one more load must not get.
    """

    context: int = 512
    mixed: tuple[int, ...] = (512, 1000, 3000)
    batches: tuple[int, ...] = BATCHES
    samples: int = 20
    clients: int = 64
    seconds: float = 8.0
    arrival_seconds: float = 20.0
    gpus: int = 2
    instances: tuple[int, ...] = (1, 2)
    parameters: dict[str, str] = field(default_factory=dict)
    any_queue: bool = False
    catalogues: tuple[Path, ...] = ()
    excluded: int = 0


@dataclass(frozen=True)
class Setup:
    """How a model is served: instances on each of so many GPUs."""

    instances: int
    gpus: int

    def __str__(self) -> str:
        where = _count(self.gpus, "GPU") if self.gpus else "the CPU"
        return f"{_count(self.instances, 'instance')} on {'each of ' if self.gpus > 1 else ''}{where}"


def measure_serving(model: Path, server: Path | None, out: Path, extent: Extent, say: Say = print, commit: str = "") -> ServingResult:
    """Measure, and write the result: after every load, so that a run that breaks off leaves what it has.

    Args:
        model: A plan, whose record lies beside it, or an exported `model.onnx`.
        server: See `find_server`.
        out: The JSON file to write.
        extent: How much.
        say: Told what was measured.
        commit: Of the source tree. Default: git's.

    Raises:
        ArtifactError: The model or the server does not load, or `out` is another kind of file.
        RequestError: The model takes no such contexts, follows a catalogue and gets none or the reverse, or the server answers nothing.
        GpuError: A plan finds no GPU, or its memory is exhausted.
    """
    require_own_json(out, ("environment", "times_ms", "loads", "summary"))
    with tempfile.TemporaryDirectory(prefix="onerec-trt-serving-") as working:
        measurement = _Measurement(model, server, Path(working), extent, say)
        bare = measurement.bare()
        loads: list[MeasuredLoad] = []
        for load in measurement.loads():
            loads.append(load)
            result = ServingResult(
                environment={**software(_TOOLS, commit), **measurement.environment()},
                model=measurement.describe(),
                context=extent.context,
                parameters=extent.parameters,
                catalogues=measurement.catalogues(),
                times_ms=bare.times_ms,
                sustained_ms=bare.sustained_ms,
                payload_ms=bare.payload_ms,
                batching=measurement.batching,
                loads=loads,
                summary=summarize(bare.times_ms, bare.sustained_ms, loads),
            )
            write_json(out, result.model_dump(mode="json"))
    say(table(result))
    say(payload_table(bare.payload_ms))
    say(f"summary: {result.summary}")
    return result


@dataclass(frozen=True)
class _BareSamples:
    """In ms: the bare runtime's first ones by requests of a batch, its largest batches back to back, and steps of their payload."""

    times_ms: dict[int, list[float]]
    sustained_ms: list[float]
    payload_ms: dict[str, list[float]]


class _Measurement:
    def __init__(self, model: Path, server: Path | None, working: Path, extent: Extent, say: Say) -> None:
        self._model, self._server, self._working, self._extent, self._say = model, server, working, extent, say
        self._on_gpu = model.suffix == ".plan"
        self._times = working / "times.json"
        self._added: VersionDescription | None = None
        self._http = self._server_version = ""
        self._repository: Repository | None = None
        self._indexes = {path: ItemIndex.load(path) for path in extent.catalogues}
        self.batching = ""

    def bare(self) -> _BareSamples:
        """Times the bare runtime, from inputs in memory to items in memory. The servers batch by the medians of the first samples."""
        extent, runner = self._extent, self._bare_runner()
        taken = samples_ms(runner, extent.context, extent.batches, extent.samples)
        sustained = back_to_back_ms(runner, extent.context, max(extent.batches), extent.seconds, _warm_up(extent.seconds))
        payload = payload_ms(runner.io, extent.context, max(extent.batches), extent.samples, on_gpu=self._on_gpu)
        del runner
        if self._on_gpu:
            gc.collect()
            torch.cuda.empty_cache()  # the servers need the memory
        medians = {batch: statistics.median(each) for batch, each in taken.items()}
        times = BatchTimes(model_sha256=sha256(self._model), context=extent.context, milliseconds=medians)
        write_json(self._times, times.model_dump(mode="json"))
        for batch, milliseconds in medians.items():
            self._say(f"bare, batch {batch:2}: {milliseconds:7.2f} ms, {batch / milliseconds * 1e3:7.1f} requests/s")
        self._say(f"bare, sustained: {statistics.mean(sustained):.2f} ms, {max(taken) / statistics.mean(sustained) * 1e3:.1f} requests/s")
        return _BareSamples(_all_rounded(taken), rounded(sustained), _all_rounded(payload))

    def _bare_runner(self) -> BareRunner:
        runner, indexes = open_runner(self._model), list(self._indexes.values())
        follows, hint = follows_catalogue(runner.io), "give --catalogue ITEMS.index with a model that follows one, and only then"
        if follows and not indexes:
            raise RequestError("the model follows a catalogue, and there is none", where=str(self._model), hint=hint)
        if not follows and (indexes or self._extent.excluded):
            raise RequestError("its beams are open, and there is a catalogue or an exclusion", where=str(self._model), hint=hint)
        if follows and self._extent.excluded > indexes[0].items:
            what = f"{self._extent.excluded} items are to be excluded, and the first catalogue has {indexes[0].items}"
            raise RequestError(what, where="--excluded", hint="exclude fewer")
        return ItemRunner(runner, indexes[0]) if follows else runner

    def loads(self) -> Iterator[MeasuredLoad]:
        """Every load on every server."""
        gpus = min(self._extent.gpus, torch.cuda.device_count()) if self._on_gpu else 0
        one = min(gpus, 1)
        *fewer, most = self._extent.instances
        for instances in fewer:
            yield from self._on(Setup(instances, one), self._closed_loops)
        yield from self._on(Setup(most, one), self._every_load)
        if gpus >= 2:
            yield from self._on(Setup(most, 2), self._on_two)

    def catalogues(self) -> dict[str, dict[str, int]]:
        """What each of them holds."""
        return {index.digest: {"items": index.items, "sids": index.sids} for index in self._indexes.values()}

    def environment(self) -> dict[str, Any]:
        """The machine."""
        found: dict[str, Any] = {"server": self._server_version}
        if self._on_gpu:
            machine = this_machine("tensorrt")
            found |= {"gpu": machine.gpu, "gpus": torch.cuda.device_count(), "driver": machine.driver, "tensorrt": machine.library_version}
        return found

    def describe(self) -> dict[str, Any]:
        """The model, as the repository describes it."""
        assert self._added is not None
        return {
            "file": self._model.name,
            "sha256": self._added.model_sha256,
            "bytes": self._added.resources.model_bytes,
            "bytes_of_a_request": sum(tensor.nbytes(1, self._extent.context) for tensor in self._added.io.per_request),
            "validated": self._added.validated,
        }

    def _on(self, setup: Setup, ask: Callable[[Setup, str], Iterator[MeasuredLoad]]) -> Iterator[MeasuredLoad]:
        repository = Repository(self._working / f"{setup.instances}-{setup.gpus}")
        contexts = (self._extent.context, *self._extent.mixed)
        options = Options(
            "python",
            times=self._times,
            any_queue=self._extent.any_queue,
            instances=setup.instances,
            gpus=max(1, setup.gpus),
            unvalidated=True,
            parameters=self._extent.parameters,
            graph_limits=GRAPH_LIMITS.model_copy(update={"max_context": max(contexts), "max_batch": max(self._extent.batches)}),
        )
        self._added = add_version(repository, self._model, options)
        self.batching = self._added.batching.why
        if self._extent.catalogues:
            repository.add_catalogue(self._added.name, self._extent.catalogues[0])
        self._repository = repository
        with served(repository, self._server) as ports:
            self._http = f"127.0.0.1:{ports['http']}"
            self._server_version = server_version(self._http)
            yield from ask(setup, f"127.0.0.1:{ports['grpc']}")

    def _closed_loops(self, setup: Setup, url: str) -> Iterator[MeasuredLoad]:
        for clients in (self._extent.clients, 2 * self._extent.clients):
            yield self._measured(setup, self._load(url, clients=clients))

    def _every_load(self, setup: Setup, url: str) -> Iterator[MeasuredLoad]:
        closed = list(self._closed_loops(setup, url))
        yield from closed
        yield self._measured(setup, self._load(url, clients=2 * self._extent.clients, shared_memory=True))
        largest = max(self._extent.batches)
        yield self._measured(setup, self._load(url, clients=4, batch=largest, processes=4))
        yield self._measured(setup, self._load(url, clients=2 * self._extent.clients, contexts=self._extent.mixed))
        rate = SATURATION * saturating(closed).result.requests_per_s
        yield self._measured(setup, self._load(url, rate=rate, seconds=self._extent.arrival_seconds))
        yield from self._with_catalogues(setup, url, rate)

    def _with_catalogues(self, setup: Setup, url: str, rate: float) -> Iterator[MeasuredLoad]:
        """What only a model that follows a catalogue can be asked."""
        extent = self._extent
        if extent.excluded:
            yield self._measured(setup, self._load(url, clients=2 * extent.clients, excluded=extent.excluded))
        if len(extent.catalogues) > 1:
            yield self._measured(setup, self._load(url, clients=2 * extent.clients), swapping=True)
            yield self._measured(setup, self._load(url, rate=rate, seconds=extent.arrival_seconds), swapping=True)

    def _on_two(self, setup: Setup, url: str) -> Iterator[MeasuredLoad]:
        yield self._measured(setup, self._load(url, clients=4 * self._extent.clients))

    def _load(self, url: str, **changes: Any) -> Load:
        extent = self._extent
        load = Load(url, "grpc", "onerec", extent.clients, None, (extent.context,), 1, extent.seconds, 0, catalogues=extent.catalogues)
        load = replace(load, **changes)
        most = max(1, (os.cpu_count() or 1) // 2)
        processes = load.processes or min(most, max(1, load.clients // _PER_PROCESS))
        return replace(load, processes=processes, warm_up=_warm_up(load.seconds))

    def _measured(self, setup: Setup, load: Load, swapping: bool = False) -> MeasuredLoad:
        asking = f"{load.clients} clients" if load.rate is None else f"{load.rate:.0f} arrivals per second"
        name = f"{setup}, {asking}" + (f" with {load.batch} contexts each" if load.batch > 1 else "")
        name += ", inputs in shared memory" if load.shared_memory else ""
        name += f", contexts of {', '.join(map(str, load.contexts))}" if len(load.contexts) > 1 else ""
        name += f", {load.excluded} items excluded" if load.excluded else ""
        name += ", catalogues swapped" if swapping else ""
        busy, counted = BusyWatch(setup.gpus), StatisticsWatch(self._http, load.model)
        assert self._repository is not None
        catalogues = {index.digest: path for path, index in self._indexes.items()}
        swaps = SwapWatch(self._repository, load.model, catalogues, self._http) if swapping else None
        result = measure_load(load, meanwhile=(busy, counted, *((swaps,) if swaps else ())))
        shares = busy.shares()
        self._say(f"{name}: {describe(result)}, GPU busy {shares}")
        return MeasuredLoad(
            name=name,
            instances=setup.instances,
            gpus=setup.gpus,
            clients=load.clients,
            rate=load.rate,
            contexts=load.contexts,
            batch=load.batch,
            shared_memory=load.shared_memory,
            seconds=load.seconds,
            gpu_busy=shares,
            result=result,
            server=counted.counted(),
            excluded=load.excluded,
            swaps=swaps.swaps() if swaps else None,
        )


def _warm_up(seconds: float) -> float:
    return seconds / 6


def _all_rounded(samples: Mapping[Key, Sequence[float]]) -> dict[Key, list[float]]:
    return {key: rounded(each) for key, each in samples.items()}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")
