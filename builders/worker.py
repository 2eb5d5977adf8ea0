"""The child process in which TensorRT builds one plan: `python -m onerec_trt.builders.worker`.

TensorRT may abort a process or be killed for memory; here it takes nobody along. The job comes as one line of JSON on
standard input, which stays open as long as the parent lives; events go out as lines of JSON on a file descriptor.
Standard output and error are the builder's log, the library's own included.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from ..core.errors import OnerecTrtError
from ..runtime.engine import Engine
from ..runtime.tensorrt_api import BuiltPlan, Network, ShapeRange, Target, load
from .timing_cache import digest, read_cache, write_cache


class Job(BaseModel):
    """What to build.

    `graph`: the inlined model; `beside`: the path in whose folder its external data lies. `layers`: where the engine
    inspector's report goes, which needs the plan's GPU; `timing_cache`: the file of the cache; `plugin_host`: the library that
    runs the graph's kernels, which the plan will carry. All three may be None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: Path
    beside: Path
    plan: Path
    target: Target
    compute_capability: str | None
    profiles: list[dict[str, ShapeRange]]
    timing_cache: Path | None = None
    strict_timing_cache: bool = False
    layers: Path | None = None
    plugin_host: Path | None = None
    events: int


# Said of every graph with integers in its contract, which runners give as int64.
_USUAL = re.compile(r"Make sure (input|output) \S+ has Int64 binding")


class Log:
    """The library's messages on standard output, verbose ones left out; keeps errors and unusual warnings."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []  # each once, in the order they came
        self.failure: OSError | None = None

    def __call__(self, severity: str, message: str, /) -> None:
        if severity == "VERBOSE":
            return
        if "ERROR" in severity:
            self.errors.append(message)
        if severity == "WARNING" and not _USUAL.search(message) and message not in self.warnings:
            self.warnings.append(message)
        try:
            print(f"[{severity}] {message}", flush=True)
        except OSError as error:  # an exception must not pass through the library; it is raised after the call
            self.failure = self.failure or error


class Events:
    """Sends events to the parent; also the progress sink of the builder."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, **event: Any) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()

    def started(self, phase: str, parent: str, steps: int) -> None:
        self.send(event="started", phase=phase, parent=parent, steps=steps)

    def stepped(self, phase: str) -> None:
        self.send(event="stepped", phase=phase)

    def finished(self, phase: str) -> None:
        self.send(event="finished", phase=phase)


def main() -> int:
    """Build the plan of the job on standard input; the last event is either `built` or `failed`."""
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=exit_with_parent, daemon=True).start()
    log = Log()
    with os.fdopen(job.events, "w") as stream:
        events = Events(stream)
        try:
            events.send(event="built", **_build(job, log, events))
        except OnerecTrtError as error:
            events.send(event="failed", what=error.what, where=error.where, hint=error.hint, errors=log.errors)
        except OSError as error:
            what, where = error.strerror or str(error), "" if error.filename is None else str(error.filename)
            events.send(event="failed", what=what, where=where, hint="", errors=log.errors, errno=error.errno)
        else:
            return 0
    return 1


def exit_with_parent() -> None:
    """End this process when standard input closes: the parent is gone, and nobody wants the plan any more."""
    sys.stdin.read()
    os._exit(1)


def _build(job: Job, log: Log, events: Events) -> dict[str, Any]:
    start = time.monotonic()
    bindings = load(job.target)
    plugins = () if job.plugin_host is None else (job.plugin_host,)
    network = bindings.parse(job.graph.read_bytes(), job.beside, log, plugins)
    known = None if job.timing_cache is None else read_cache(job.timing_cache)
    built = network.build(
        compute_capability=job.compute_capability,
        profiles=job.profiles,
        progress=events,
        timing_cache=known,
        strict_timing_cache=job.strict_timing_cache,
    )
    if log.failure is not None:
        raise log.failure
    seconds = round(time.monotonic() - start, 3)
    with job.plan.open("wb") as stream:
        stream.write(built.plan)
    timings = _keep_timings(job, network, built, known or b"")
    scratch = None
    if job.layers is not None:
        engine = Engine(bindings, memoryview(built.plan), str(job.plan), host_code=bool(plugins))
        report = engine.layer_information()
        if not report:  # the plan is built and good; its record will say that nothing is known of its layers
            log("WARNING", "the engine inspector gives no report")
        job.layers.write_text(report or json.dumps({"Layers": []}), encoding="utf-8")
        scratch = engine.scratch_bytes
    return {
        "version": bindings.version,
        "builder_flags": built.builder_flags,
        "build_seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "scratch_bytes": scratch,
        "timing_cache": timings,
        "warnings": log.warnings,
    }


def _keep_timings(job: Job, network: Network, built: BuiltPlan, known: bytes) -> dict[str, Any] | None:
    """Store what the build measured; a strict build measures nothing. Gives the hashes before and after."""
    if job.timing_cache is None or built.timing_cache is None:
        return None
    after = known
    if not job.strict_timing_cache:
        after = write_cache(job.timing_cache, built.timing_cache, known, network.merge_timing_caches)
    return {"file": job.timing_cache.name, "sha256_before": digest(known), "sha256": digest(after), "bytes": len(after)}


if __name__ == "__main__":
    sys.exit(main())
