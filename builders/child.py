"""The parent's side of a build: start the child process, follow its events, and make an error of every way it can end.

The child never outlives this call: it is killed on any exception here, Ctrl-C included.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import BuildError
from ..core.progress import progress_bar
from .profiles import IMPOSSIBLE
from .worker import Job

# -P: the working directory is not searched for modules, whatever files lie there.
WORKER = (sys.executable, "-P", "-m", "onerec_trt.builders.worker")
_PARTS = 100


def build_in_child(job_for: Callable[[int], Job], log: Path, label: str) -> dict[str, Any]:
    """Build one plan in a child process, with a progress bar.

    Args:
        job_for: Makes the job, given the file descriptor for the child's events.
        log: Where the builder's log goes.
        label: Name on the progress bar.

    Returns:
        The child's last event, `built`.

    Raises:
        BuildError: TensorRT refused, the child was aborted or killed, or a profile's maximum cannot be run; quotes the log.
        OSError: The child could not write its files.
    """
    last: dict[str, Any] = {}
    with progress_bar(label, _PARTS) as advance, _child(job_for, log) as (process, lines):
        tree, shown = PhaseTree(), 0
        for line in lines:
            if not line.endswith("\n"):  # the child died while it wrote; its exit status says how
                break
            last = json.loads(line)
            tree.update(last)
            advance((now := max(shown, int(tree.fraction() * _PARTS))) - shown)
            shown = now
        status = process.wait()
    if last.get("event") == "built" and status == 0:
        _require_runnable(last["warnings"], label)
        return last
    raise _failure(last, status, log, label)


def _require_runnable(warnings: Sequence[str], label: str) -> None:
    for warning in warnings:
        if IMPOSSIBLE in warning:
            hint = "lower the maxima of build.profiles to the largest batch and context that are served"
            raise BuildError(f"the maximum of a profile cannot be run\n{warning}", where=label, hint=hint)


@contextmanager
def _child(job_for: Callable[[int], Job], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading) as lines:
        try:
            job = job_for(writing)
            with log.open("wb") as log_stream:
                process = subprocess.Popen(
                    WORKER, stdin=subprocess.PIPE, stdout=log_stream, stderr=subprocess.STDOUT, pass_fds=(writing,), start_new_session=True
                )
        finally:
            os.close(writing)
        try:
            assert process.stdin is not None
            _send(process.stdin, job)
            yield process, iter(lines)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _send(stdin: Any, job: Job) -> None:
    try:
        stdin.write(job.model_dump_json().encode() + b"\n")
        stdin.flush()
    except BrokenPipeError:
        return  # the child is dead already; its exit status says how


def _failure(last: dict[str, Any], status: int, log: Path, label: str) -> Exception:
    errno = last.get("errno")
    if errno is not None:
        return OSError(errno, last["what"], last["where"] or None)
    if last.get("event") == "failed":
        reasons = "\n".join(last["errors"][-5:])
        where = ", ".join(filter(None, (label, last["where"])))
        return BuildError("\n".join(filter(None, (last["what"], reasons))), where=where, hint=last["hint"])
    if status >= 0:
        return BuildError(f"the builder process ended with status {status}{_tail(log)}", where=label, hint="its last lines say why")
    hint = "give it more memory, or smaller profiles" if -status == signal.SIGKILL else "TensorRT aborted; its last lines say where"
    return BuildError(f"the builder process was ended by {signal.Signals(-status).name}{_tail(log)}", where=label, hint=hint)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]"))] or lines
    return "".join(f"\n{line}" for line in errors[-5:])


class PhaseTree:
    """How far a build is, from nested phases: the open phases inside a step count as a part of that step."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def update(self, event: dict[str, Any]) -> None:
        phase = event.get("phase", "")
        if event["event"] == "started":
            self._parents[phase], self._steps[phase], self._done[phase] = event["parent"], max(1, event["steps"]), 0
        elif event["event"] == "stepped" and phase in self._done:
            self._done[phase] += 1
        elif event["event"] == "finished":
            for table in (self._parents, self._steps, self._done):
                table.pop(phase, None)

    def fraction(self) -> float:
        """Between 0 and 1."""
        return self._within("")

    def _within(self, parent: str) -> float:
        phases = [phase for phase, above in self._parents.items() if above == parent]
        return max((min(1.0, (self._done[p] + self._within(p)) / self._steps[p]) for p in phases), default=0.0)
