"""Runs a plan on the GPU: preflight, then requests from any thread, synchronous or not, from NumPy or DLPack.

The same calling convention as the other runners; what is on the GPU stays there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..core.errors import GpuError, RequestError
from ..operators.operator import Array
from .engine import Engine
from .execution_slot import ExecutionSlot
from .layer_times import PlaceTime, times_by_place
from .machine import this_machine
from .plan_record import read_plan
from .plan_shapes import Shape, Shapes, check_inputs, choose_profile, filled_up, shapes_of
from .preflight import preflight
from .tensorrt_api import load
from .verdict import inspect_proven

Input: TypeAlias = Any  # a NumPy array, a torch tensor, or anything that speaks DLPack


class Pending:
    """A batch that was submitted."""

    def __init__(self, outputs: dict[str, Tensor], finished: torch.cuda.Event, device: int) -> None:
        self._outputs, self._finished, self._device = outputs, finished, device

    def done(self) -> bool:
        """Whether it has run; never waits."""
        return bool(self._finished.query())

    def result(self) -> dict[str, Any]:
        """Outputs by name: NumPy arrays after waiting, or tensors on the GPU that the current stream of that GPU waits for."""
        if not any(tensor.is_cuda for tensor in self._outputs.values()):
            self._finished.synchronize()
            return {name: tensor.numpy() for name, tensor in self._outputs.items()}
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._finished)
        for tensor in self._outputs.values():
            tensor.record_stream(stream)
        return dict(self._outputs)


class TensorRtRunner:
    """A plan, loaded and ready. Safe to call from several threads.

    While a shape is captured, at its second use or in `warm_up`, CUDA allows no other thread to wait for the whole GPU.

    Args:
        plan: Path of the plan; its record lies beside it.
        executions: Batches that may run at the same time; each has buffers and scratch memory of its own.
        graphs: CUDA graphs kept per execution, one per shape, captured at its second use. 0: none.

    Raises:
        ArtifactError: The plan was changed or truncated, or was built for another GPU or TensorRT.
        GpuError: There is no GPU, no driver, or not enough memory.
        MissingExtraError: TensorRT is not installed.
    """

    def __init__(self, plan: Path, *, executions: int = 1, graphs: int = 16) -> None:
        assert executions >= 1
        content = read_plan(plan)
        record = inspect_proven(plan, content)  # of these very bytes, even if another build replaces the file meanwhile
        self.warnings = preflight(record, this_machine(record.target))
        bindings = load(record.target)
        self.plan, self.sha256 = plan, record.sha256
        self._device = torch.cuda.current_device()
        self._warming = threading.Lock()
        self._slots: SimpleQueue[ExecutionSlot] = SimpleQueue()  # first in, first out: work spreads over the slots
        self.executions = executions
        try:
            self.engine = Engine(bindings, content, str(plan), host_code=record.plugins is not None)
            del content  # gigabytes that nobody reads again
            for _ in range(executions):
                self._slots.put(ExecutionSlot(self.engine, graphs))
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error, plan) from error
        self.input_names = [tensor.name for tensor in self.engine.inputs]
        self.output_names = [tensor.name for tensor in self.engine.outputs]

    def __call__(self, inputs: Mapping[str, Input]) -> dict[str, Any]:
        """Outputs by name, after waiting for them; on the GPU when an input is there.

        Raises:
            RequestError: An input is missing, unknown, of a wrong type, or beyond every profile.
            GpuError: The GPU's memory is exhausted, or another thread broke a capture.
        """
        return self.submit(inputs).result()

    def submit(self, inputs: Mapping[str, Input]) -> Pending:
        """Enqueue a batch and return at once; it may be fetched, or dropped, at any time.

        A context shorter than the plan takes is filled up; `lengths` say what of it counts.
        NumPy arrays may change as soon as this returns, tensors once the result is there.

        Raises:
            RequestError: An input is missing, unknown, of a wrong type, or beyond every profile.
            GpuError: The GPU's memory is exhausted, or another thread broke a capture.
        """
        arrays = {name: value if isinstance(value, np.ndarray) else _tensor(name, value) for name, value in inputs.items()}
        check_inputs(self.engine.inputs, {name: (_dtype(a), tuple(a.shape)) for name, a in arrays.items()}, str(self.plan))
        profile, shapes = self._fitted(_shapes(arrays))
        on_gpu = any(isinstance(array, Tensor) and array.is_cuda for array in arrays.values())
        with self._slot() as slot:
            return self._run(slot, profile, {name: _filled_up(array, shapes[name]) for name, array in arrays.items()}, on_gpu)

    def warm_up(self, batch: int, context: int) -> None:
        """Run this shape on every execution until its CUDA graph is captured; requests of it are fast from the first on.

        Raises:
            RequestError: The shape is beyond every profile.
            GpuError: The GPU's memory is exhausted, or another thread broke a capture.
        """
        tensors = {t.name: t for t in self.engine.inputs}
        profile, shapes = self._fitted(shapes_of(self.engine.inputs, batch, context))
        with self._warming, self._on_gpu():
            zeros = {name: torch.zeros(shape, dtype=getattr(torch, tensors[name].dtype), device="cuda") for name, shape in shapes.items()}
            slots = [self._slots.get() for _ in range(self.executions)]
            try:
                for slot in slots:
                    slot.stream.wait_stream(torch.cuda.current_stream())
                    for _ in range(3):  # plain, with a capture after it, from the graph
                        slot.run(profile, zeros)
                    slot.stream.synchronize()
            finally:
                for slot in slots:
                    self._slots.put(slot)

    def layer_times(self, inputs: Mapping[str, Tensor]) -> list[PlaceTime]:
        """Where the time of a batch goes, by the places in the model that the plan's layers compute; the slowest first.

        Args:
            inputs: On the GPU.

        Raises:
            RequestError: The shapes are beyond every profile.
        """
        profile, shapes = self._fitted(_shapes(inputs))
        report = json.loads(self.engine.layer_information())
        with self._slot() as slot:
            filled = {name: cast(Tensor, _filled_up(tensor, shapes[name])) for name, tensor in inputs.items()}
            slot.stream.wait_stream(torch.cuda.current_stream())
            return times_by_place(slot.layer_milliseconds(profile, filled), report)

    @contextmanager
    def _slot(self) -> Iterator[ExecutionSlot]:
        """The next free slot, on the runner's GPU."""
        slot = self._slots.get()
        try:
            with self._on_gpu():
                yield slot
        finally:
            self._slots.put(slot)

    @contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """The runner's GPU is the current one; its memory being exhausted is a typed error."""
        try:
            with torch.cuda.device(self._device):
                yield
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error, self.plan) from error

    def _fitted(self, shapes: Shapes) -> tuple[int, dict[str, Shape]]:
        """Number of the profile that serves these shapes, and what they are once a short context is filled up."""
        profile = choose_profile(self.engine.profiles, shapes, str(self.plan))
        return profile, filled_up(self.engine.profiles[profile], shapes)

    def _run(self, slot: ExecutionSlot, profile: int, arrays: Mapping[str, Array | Tensor], on_gpu: bool) -> Pending:
        """The outputs are copies, so that the slot is free for the next batch at once."""
        slot.stream.wait_stream(torch.cuda.current_stream())
        staged = {name: _pinned(array) if isinstance(array, np.ndarray) else array for name, array in arrays.items()}
        outputs = slot.run(profile, staged)
        for tensor in staged.values():
            if tensor.is_cuda:
                tensor.record_stream(slot.stream)
        with torch.cuda.stream(slot.stream):
            own = {name: tensor.clone() if on_gpu else _to_host(tensor) for name, tensor in outputs.items()}
            finished = torch.cuda.Event()
            finished.record()
        slot.keep([tensor for tensor in staged.values() if tensor.is_cuda], finished)
        return Pending(own, finished, self._device)


def _tensor(name: str, value: Input) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        hint = "give a NumPy array, a tensor, or something that speaks DLPack"
        raise RequestError(f"input '{name}' is a {type(value).__name__}, not an array", hint=hint)
    return from_dlpack(value)


def _shapes(arrays: Mapping[str, Array | Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _filled_up(array: Array | Tensor, shape: Shape) -> Array | Tensor:
    """With zeros behind every context up to this shape; what lies behind a context changes nothing."""
    if tuple(array.shape) == shape:
        return array
    tokens = shape[1] - array.shape[1]
    if isinstance(array, np.ndarray):
        return np.pad(array, [(0, 0), (0, tokens), (0, 0)])
    return torch.nn.functional.pad(array, [0, 0, 0, tokens])


def _dtype(array: Array | Tensor) -> str:
    return array.dtype.name if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")


def _pinned(array: Array) -> Tensor:
    """A copy in page-locked memory, from which the GPU copies while the CPU goes on; torch keeps such memory for the next call."""
    staged = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=True)
    np.copyto(staged.numpy(), array)
    return staged


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _out_of_memory(error: torch.OutOfMemoryError, plan: Path) -> GpuError:
    hint = "use fewer executions, or build the plan with a smaller largest batch or context"
    return GpuError(f"the GPU's memory is exhausted: {str(error).splitlines()[0]}", where=str(plan), hint=hint)
