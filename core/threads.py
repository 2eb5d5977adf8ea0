"""How many threads the product computes with, and how they wait, so that a busy machine slows it down only in proportion.

By default OpenMP (PyTorch) and ONNX Runtime let waiting threads spin. Where cores are shared with another process,
spinning threads take the time of those that still compute, and a run takes many times as long. Here they sleep.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Environment variables of OpenMP libraries that say how threads wait: the standard's own, GNU's and LLVM's.
_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ONNXRUNTIME_SESSION = {"session.intra_op.allow_spinning": "0"}  # key and value for a session's options
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time per period, or "max"


def set_thread_defaults() -> None:
    """Set the environment of OpenMP for this process and those it starts; variables the user has set stay.

    OpenMP reads it when PyTorch is imported, so this comes first.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if not any(name in os.environ for name in _WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def thread_count() -> int:
    """Threads within an operator: OMP_NUM_THREADS where it is a number (of a list, the first), else every usable core."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) > 0 else usable_cores()


def usable_cores(limit: Path = _CGROUP_LIMIT) -> int:
    """Cores this process may run on, at most those its container may keep busy.

    Args:
        limit: The container's limit, in the form of cgroup v2's `cpu.max`; none where the file is missing.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = limit.read_text().split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the order of the items, computed in threads, one for each usable core; no more than so many wait to be taken."""
    count = usable_cores()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
