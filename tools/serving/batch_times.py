"""Measures how long batches of several sizes take: what a server's batching is set by."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...core.arrays import Array
from ...core.artifacts import sha256, write_json
from ...core.graph_io import GraphIO, Role
from ...models.config import PATHWAYS
from ...server.repository.batching import BatchTimes
from ..bench.sampling import interleaved_ms, sustained_ms
from ..outputs import require_own_json
from ..recommend import open_runner


class BareRunner(Protocol):
    """What runs batches from inputs in memory to items in memory, without a server."""

    @property
    def io(self) -> GraphIO: ...

    def __call__(self, inputs: Mapping[str, Any], /) -> Any: ...


def measure(model: Path, out: Path, context: int, batches: Sequence[int], samples: int) -> BatchTimes:
    """Time batches from inputs in memory to items in memory, and write the medians as JSON.

    Args:
        model: A plan, whose record lies beside it, or an exported `model.onnx`.
        out: The file to write.
        context: Tokens of every request.
        batches: Requests of each batch.
        samples: Of each batch; they take turns, in an order drawn anew for every round.

    Raises:
        ArtifactError: The model does not load, or `out` is another kind of file.
        RequestError: A batch is beyond every profile.
        GpuError: A plan finds no GPU, or its memory is exhausted.
    """
    require_own_json(out, ("model_sha256", "milliseconds"))
    taken = samples_ms(open_runner(model), context, batches, samples)
    milliseconds = {batch: statistics.median(each) for batch, each in taken.items()}
    times = BatchTimes(model_sha256=sha256(model), context=context, milliseconds=milliseconds)
    write_json(out, times.model_dump(mode="json"))
    return times


def samples_ms(runner: BareRunner, context: int, batches: Sequence[int], samples: int) -> dict[int, list[float]]:
    """Milliseconds from inputs in memory to items in memory, by requests of a batch, ascending.

    Each batch is alone: the GPU waits while the host copies its inputs, launches it and fetches its items. A small batch that comes
    behind a large one finds the clock that the large one left, so the order is drawn anew for every round.

    Raises:
        RequestError: A batch is beyond every profile.
        GpuError: The GPU's memory is exhausted.
    """
    inputs = {batch: random_inputs(runner.io, batch, context) for batch in sorted(set(batches))}
    runs = {batch: partial(runner, given) for batch, given in inputs.items()}
    return interleaved_ms(runs, samples, _nothing)


def back_to_back_ms(runner: BareRunner, context: int, batch: int, seconds: float, warm_up: float) -> list[float]:
    """Likewise of batches one right after the other, for `seconds` after a warm-up: at the clocks that the GPU can keep up.

    Raises:
        RequestError: The batch is beyond every profile.
        GpuError: The GPU's memory is exhausted.
    """
    inputs = random_inputs(runner.io, batch, context)
    return sustained_ms(partial(runner, inputs), _nothing, seconds, warm_up)


def random_inputs(io: GraphIO, batch: int, context: int) -> dict[str, Array]:
    """Random features, and all tokens in the last pathway."""
    shapes = io.shapes(batch, context)
    features, lengths = io.name(Role.CONTEXT_FEATURES), io.name(Role.PATHWAY_LENGTHS)
    lengths_B3 = np.zeros((batch, len(PATHWAYS)), np.int64)
    lengths_B3[:, -1] = context
    return {features: np.random.default_rng(0).standard_normal(shapes[features]).astype(np.float16), lengths: lengths_B3}


def _nothing() -> None:
    """To wait for: a call gives its items when they are in memory."""
