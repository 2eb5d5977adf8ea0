"""One slot of a runner: a stream, device buffers for the largest shapes, scratch memory, and what was captured on it.

Work of one slot runs in order, so all its execution contexts share one scratch. Slots run beside each other.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.dtypes import DTYPES
from ..core.errors import GpuError
from .autograd import without_autograd
from .engine import CaptureRefusedError, Engine, Execution
from .plan_shapes import Shape, Shapes
from .shape_cache import ShapeCache
from .tensorrt_api import TensorInfo

_log = logging.getLogger(__name__)
_capturing = threading.Lock()  # torch empties its allocator's caches when a capture begins
_LEFT_FREE = 1 << 30  # bytes of the GPU that graphs leave alone: the next batch needs some, and so do other processes


class CaptureBrokenError(GpuError):
    """Something outside of the plan, such as another thread that waits for the GPU, broke a capture."""


@dataclass(frozen=True)
class Captured:
    """A CUDA graph, the shapes of its outputs, and the context it was captured from, which is of a profile.

    TensorRT's guide wants one context per graph: a context whose shapes change afterwards invalidates its graph.
    """

    graph: torch.cuda.CUDAGraph
    outputs: dict[str, Shape]
    execution: Execution
    profile: int


class ExecutionSlot:
    """Runs one batch after the other on its own stream.

    Args:
        engine: The plan.
        graphs: CUDA graphs kept, one per shape.
        capture_in_use: Whether a shape is captured at its second use. If not, only while warming up.
        residents: By name the buffers of inputs that do not come with a batch; they outlive the slot. Default: none.

    Raises:
        torch.OutOfMemoryError: The GPU has no room for the buffers.
        GpuError: It has none for what TensorRT itself allocates.
    """

    @without_autograd
    def __init__(self, engine: Engine, graphs: int, residents: Mapping[str, Tensor] | None = None, *, capture_in_use: bool = True) -> None:
        self._engine = engine
        self._residents = {} if residents is None else residents
        self._per_request = [tensor for tensor in engine.inputs if tensor.name not in self._residents]
        self.stream = torch.cuda.Stream()
        self._scratch = torch.empty(max(1, engine.scratch_bytes), dtype=torch.uint8, device="cuda")
        unbound = [self._unbound(number) for number in range(len(engine.profiles))]
        self._buffers = {tensor.name: _buffer(tensor, elements) for tensor, elements in self._largest(unbound)}
        self._plain = [self._bound(execution) for execution in unbound]
        self._capturable, self._capture_in_use = True, capture_in_use
        self._captured: ShapeCache[tuple[int, tuple[Shape, ...]], Captured] = ShapeCache(graphs)
        self._kept: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()

    def __del__(self) -> None:
        """Work that still runs loses neither its memory nor its contexts; at the interpreter's end the driver may be gone already."""
        if hasattr(self, "stream"):
            with suppress(RuntimeError):
                self.stream.synchronize()

    @property
    def graphs(self) -> int:
        """CUDA graphs captured so far and still kept."""
        return len(self._captured)

    @without_autograd
    def run(self, profile: int, inputs: Mapping[str, Tensor], *, warming_up: bool = False) -> dict[str, Tensor]:
        """Enqueue one batch on the slot's stream; gives views of the output buffers, valid until the next batch.

        Args:
            profile: An optimization profile that takes these shapes.
            inputs: On the GPU, or in pinned memory.
            warming_up: Whether nobody waits for the answer.
        """
        with torch.cuda.stream(self.stream):
            outputs = self._execute(profile, self._fill(inputs), capture=warming_up or self._capture_in_use)
        return {name: self._view(name, shape) for name, shape in outputs.items()}

    def keep(self, tensors: list[Tensor], until: torch.cuda.Event) -> None:
        """Hold inputs in memory that is not torch's, of which nobody else may know that the stream still reads them."""
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        self._kept.append((until, tensors))

    @without_autograd
    def layer_milliseconds(self, profile: int, inputs: Mapping[str, Tensor]) -> list[tuple[str, float]]:
        """Run one batch twice without a graph; gives the name and milliseconds of each layer of the second time."""
        execution = self._bound(self._unbound(profile))
        with torch.cuda.stream(self.stream):
            execution.set_inputs(self._fill(inputs))
            execution.enqueue(self.stream.cuda_stream)
            return execution.layer_milliseconds(self.stream.cuda_stream, self.stream.synchronize)

    def _fill(self, inputs: Mapping[str, Tensor]) -> dict[str, Shape]:
        """Copy a batch into the input buffers, on the current stream; gives its shapes."""
        shapes = {tensor.name: tuple(inputs[tensor.name].shape) for tensor in self._per_request}
        for name, shape in shapes.items():
            self._view(name, shape).copy_(inputs[name], non_blocking=True)
        return shapes

    def _execute(self, profile: int, shapes: Shapes, *, capture: bool) -> dict[str, Shape]:
        key = (profile, tuple(shapes.values()))
        if (known := self._captured.get(key)) is not None:
            known.graph.replay()
            return known.outputs
        if capture and self._capturable and self._captured.earns_place(key) and (own := self._context_for_graph(profile)):
            return self._run_and_capture(key, shapes, own)
        return self._run(self._plain[profile], shapes)

    def _run(self, execution: Execution, shapes: Shapes) -> dict[str, Shape]:
        outputs = execution.set_inputs(shapes)
        execution.enqueue(self.stream.cuda_stream)
        return outputs

    def _run_and_capture(self, key: tuple[int, tuple[Shape, ...]], shapes: Shapes, execution: Execution) -> dict[str, Shape]:
        """Run once, which settles what follows from the shapes, then capture the same again without running it.

        The batch has its outputs whether the capture succeeds or not.
        """
        outputs = self._run(execution, shapes)
        try:
            self._captured.put(key, Captured(self._captured_run(execution), outputs, execution, key[0]))
        except (GpuError, torch.OutOfMemoryError) as problem:
            self.stream.synchronize()  # the context goes, and may still be running
            self._without_graph(problem)
        return outputs

    def _context_for_graph(self, profile: int) -> Execution | None:
        """A context of its own for one more graph; None where the GPU has no room for it."""
        try:
            if (freed := self._freed(profile)) is not None:
                return freed
            if (free := torch.cuda.mem_get_info()[0]) < _LEFT_FREE:
                raise torch.OutOfMemoryError(f"{free >> 20} MiB of the GPU are free")
            return self._bound(self._unbound(profile))
        except (GpuError, torch.OutOfMemoryError) as problem:
            self._without_graph(problem)
            return None

    def _without_graph(self, problem: GpuError | torch.OutOfMemoryError) -> None:
        """Say why there is no graph. Only a capture that was broken is worth another try."""
        self._capturable = isinstance(problem, CaptureBrokenError)
        runs, what = "a batch runs" if self._capturable else "new shapes run", str(problem).splitlines()[0]
        _log.warning("%s: %s without a CUDA graph, which is slower at small batches. %s", self._engine.where, runs, what)

    def _captured_run(self, execution: Execution) -> torch.cuda.CUDAGraph:
        graph, pool, refused = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), None
        try:
            with _capturing, torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                try:
                    execution.enqueue(self.stream.cuda_stream)
                except CaptureRefusedError as error:
                    refused = error  # torch must end the capture first, which it then calls broken
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # whatever CUDA says of a broken capture
            _end_pool(pool)
            if refused is None:
                raise CaptureBrokenError(f"The capture was broken: {str(error).splitlines()[0]}") from error
        if refused is not None:
            raise refused
        return graph

    def _freed(self, profile: int) -> Execution | None:
        """Make room for a graph; gives the context of the one that had to go, if it is of this profile."""
        evicted = self._captured.make_room()
        if evicted is None:
            return None
        self.stream.synchronize()  # its graph may still be running
        return evicted.execution if evicted.profile == profile else None

    def _unbound(self, profile: int) -> Execution:
        scratch = self._scratch
        return self._engine.execution(profile, scratch.data_ptr(), scratch.numel(), self.stream.cuda_stream)

    def _bound(self, execution: Execution) -> Execution:
        for name, buffer in (*self._buffers.items(), *self._residents.items()):
            execution.bind(name, buffer.data_ptr())
        return execution

    def _largest(self, executions: Sequence[Execution]) -> list[tuple[TensorInfo, int]]:
        """The most elements of every input of a batch and every output in any profile; each profile has an execution."""
        largest: dict[str, int] = {}
        for profile, execution in zip(self._engine.profiles, executions, strict=True):
            inputs = {name: shapes[2] for name, shapes in profile.items()}
            for name, shape in (inputs | execution.set_inputs(inputs)).items():
                largest[name] = max(largest.get(name, 0), math.prod(shape))
        return [(tensor, largest[tensor.name]) for tensor in (*self._per_request, *self._engine.outputs)]

    def _view(self, name: str, shape: Shape) -> Tensor:
        return self._buffers[name][: math.prod(shape)].view(shape)


def _end_pool(pool: tuple[int, int]) -> None:
    """Do what torch leaves undone after a broken capture: until then it reuses no memory that a second stream has used."""
    with suppress(RuntimeError):  # a torch that has done it
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)


def _buffer(tensor: TensorInfo, elements: int) -> Tensor:
    return torch.empty(max(1, elements), dtype=DTYPES[tensor.dtype].torch, device="cuda")
