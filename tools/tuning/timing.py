"""Time on the GPU of calls that take microseconds: captured in CUDA graphs, timed by events, interleaved between candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Captured:
    """Calls in one CUDA graph, so that no time is spent on launching them from the host.

    Attributes:
        graph: The graph.
        calls: Calls in it.
        runs: What was captured; the graph reads and writes memory that they own.
    """

    graph: torch.cuda.CUDAGraph
    calls: int
    runs: tuple[Run, ...]

    def sample_us(self) -> float:
        """Microseconds of one call, the mean over the graph."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / self.calls


def captured(runs: Sequence[Run], calls: int = 24) -> Captured:
    """Capture the calls in turn, at least `calls` of them. Each should have its own tensors, together larger than the L2 cache."""
    turns = -(-calls // len(runs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(turns):
            for run in runs:
                run()
    graph.replay()
    torch.cuda.synchronize()
    return Captured(graph, turns * len(runs), tuple(runs))


def interleaved_us(candidates: Mapping[str, Captured], samples: int) -> dict[str, list[float]]:
    """Samples of each candidate, one of each per round, so that clocks and temperature drift for all alike."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(samples):
        for name, each in candidates.items():
            taken[name].append(each.sample_us())
    return taken
