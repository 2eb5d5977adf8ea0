"""Runs a loaded plan on the GPU: requests from any thread, synchronous or not, from NumPy or DLPack.

The same calling convention as the other runners; what is on the GPU stays there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..core.arrays import Array, dtype_name
from ..core.dtypes import DTYPES
from ..core.errors import RequestError
from .execution_slot import ExecutionSlot
from .layer_times import PlaceTime, times_by_place
from .loaded_plan import LoadedPlan, load_plan, out_of_memory
from .plan_shapes import Shape, Shapes, check_array, check_inputs, choose_profile, filled_up
from .resident_inputs import ResidentInputs, Staged

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
    """A plan, ready to run. Safe to call from several threads.

    A shape is captured at its second use or in `warm_up`. Where that fails, batches run without a CUDA graph, and a warning says why.

    Args:
        loaded: The plan.
        executions: Batches that may run at the same time; each has buffers and scratch memory of its own.
        graphs: CUDA graphs kept per execution, one per shape, captured at its second use. 0: none.
        capture_in_use: Whether that is so. If not, shapes are captured in `warm_up` alone: a capture takes long, and others wait for it.

    Raises:
        GpuError: The GPU has not enough memory.
    """

    def __init__(self, loaded: LoadedPlan, *, executions: int = 1, graphs: int = 16, capture_in_use: bool = True) -> None:
        assert executions >= 1
        self.plan, self.sha256, self.io, self.engine = loaded.path, loaded.sha256, loaded.io, loaded.engine
        self.executions = executions
        self._device = loaded.device
        self._stopping, self._binding = threading.Lock(), threading.Lock()
        self._slots: SimpleQueue[ExecutionSlot] = SimpleQueue()  # first in, first out: work spreads over the slots
        with self._on_gpu():
            self._residents = ResidentInputs(self.io.resident)
            for _ in range(executions):
                self._slots.put(ExecutionSlot(self.engine, graphs, self._residents.buffers, capture_in_use=capture_in_use))

    @classmethod
    def load(
        cls, plan: Path, *, executions: int = 1, graphs: int = 16, capture_in_use: bool = True, trust: Sequence[Path] = ()
    ) -> TensorRtRunner:
        """Load a plan, whose record lies beside it, and make it ready.

        Args:
            plan: Its path.
            executions: As in the class.
            graphs: As in the class.
            capture_in_use: As in the class.
            trust: Public keys, one of which must have signed it. Default: no signature is asked for.

        Raises:
            ArtifactError: The plan was changed or truncated, was built for another GPU or TensorRT, is not of its contract, or is not
                signed by a trusted key.
            GpuError: There is no GPU, no driver, or not enough memory.
            MissingExtraError: TensorRT is not installed.
        """
        return cls(load_plan(plan, trust), executions=executions, graphs=graphs, capture_in_use=capture_in_use)

    def bind_resident(self, name: str, array: Input) -> None:
        """Give a resident input its content, or swap it: batches submitted before see the old content, later ones the new.

        Takes effect between batches; those that run go on. An array may change as soon as this returns.

        Raises:
            RequestError: The plan has no such resident input, or the type or shape is another.
        """
        with self._binding:
            self.bind_staged(self.stage_residents({name: array}))

    def stage_residents(self, arrays: Mapping[str, Input]) -> Staged:
        """Copy content of resident inputs by name to the GPU, to be bound together; batches go on meanwhile.

        There is room for one: staging waits for the swap before it, and takes the place of what was staged and not bound.

        Raises:
            RequestError: The plan has no such resident input, or the type or shape is another.
        """
        given = {name: self._checked(name, array) for name, array in arrays.items()}
        with self._on_gpu():
            return self._residents.stage(given)

    def bind_staged(self, staged: Staged) -> None:
        """Bind what `stage_residents` gave, all between the same two batches. Waits for nothing but calls of `submit` under way.

        Raises:
            RequestError: Something else has been staged since.
        """
        with self._all_slots() as slots:
            self._residents.swap(staged, [slot.stream for slot in slots])

    def _checked(self, name: str, array: Input) -> Array | Tensor:
        """Content of a resident input."""
        if name not in self._residents.tensors:
            known = ", ".join(self._residents.tensors) or "none"
            raise RequestError(f"'{name}' is no resident input of the plan", where=str(self.plan), hint=f"resident inputs: {known}")
        given = array if isinstance(array, np.ndarray) else _tensor(name, array)
        check_array(self._residents.tensors[name], _dtype(given), tuple(given.shape), str(self.plan))
        return given

    def __call__(self, inputs: Mapping[str, Input]) -> dict[str, Any]:
        """Outputs by name, after waiting for them; on the GPU when an input is there.

        Raises:
            RequestError: An input is missing, unknown, not bound, of a wrong type, or beyond every profile.
            GpuError: The GPU's memory is exhausted.
        """
        return self.submit(inputs).result()

    def submit(self, inputs: Mapping[str, Input]) -> Pending:
        """Enqueue a batch and return at once; it may be fetched, or dropped, at any time.

        A context shorter than the plan takes is filled up; `lengths` say what of it counts.
        NumPy arrays may change as soon as this returns, tensors once the result is there.

        Raises:
            RequestError: An input is missing, unknown, of a wrong type, or beyond every profile.
            GpuError: The GPU's memory is exhausted.
        """
        arrays = {name: value if isinstance(value, np.ndarray) else _tensor(name, value) for name, value in inputs.items()}
        self._residents.require_bound(str(self.plan))
        check_inputs(self.io, {name: (_dtype(a), tuple(a.shape)) for name, a in arrays.items()}, str(self.plan))
        profile, shapes = self._fitted(_shapes(arrays))
        on_gpu = any(isinstance(array, Tensor) and array.is_cuda for array in arrays.values())
        with self._slot() as slot:
            return self._run(slot, profile, {name: _filled_up(array, shapes[name]) for name, array in arrays.items()}, on_gpu)

    def warm_up(self, batch: int, context: int) -> None:
        """Run this shape on every execution until its CUDA graph is captured; requests of it are fast from the first on.

        No other thread may wait for the whole GPU meanwhile, or there is no graph.

        Raises:
            RequestError: The shape is beyond every profile, or a resident input is not bound.
            GpuError: The GPU's memory is exhausted.
        """
        self._residents.require_bound(str(self.plan))
        profile, shapes = self._fitted(self.io.shapes(batch, context))
        dtypes = {tensor.name: DTYPES[tensor.dtype].torch for tensor in self.io.per_request}
        with self._all_slots() as slots:
            zeros = {name: torch.zeros(shape, dtype=dtypes[name], device="cuda") for name, shape in shapes.items()}
            for slot in slots:
                slot.stream.wait_stream(torch.cuda.current_stream())
                for _ in range(3):  # plain, with a capture after it, from the graph
                    slot.run(profile, zeros, warming_up=True)
                slot.stream.synchronize()

    @property
    def graphs(self) -> int:
        """CUDA graphs captured so far and still kept, of all executions together."""
        with self._all_slots() as slots:
            return sum(slot.graphs for slot in slots)

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
    def _all_slots(self) -> Iterator[list[ExecutionSlot]]:
        """Every slot, once none is in use, on the runner's GPU. One at a time may ask, lest two hold a part each."""
        with self._stopping, self._on_gpu():
            slots = [self._slots.get() for _ in range(self.executions)]
            try:
                yield slots
            finally:
                for slot in slots:
                    self._slots.put(slot)

    @contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """The runner's GPU is the current one; its memory being exhausted is a typed error."""
        try:
            with torch.cuda.device(self._device):
                yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, self.plan) from error

    def _fitted(self, shapes: Shapes) -> tuple[int, dict[str, Shape]]:
        """Number of the profile that serves these shapes, and what they are once a short context is filled up."""
        profile = choose_profile(self.io, self.engine.profiles, shapes, str(self.plan))
        return profile, filled_up(self.io, self.engine.profiles[profile], shapes)

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
    missing = [(0, wanted - given) for wanted, given in zip(shape, array.shape, strict=True)]
    if isinstance(array, np.ndarray):
        return np.pad(array, missing)
    return torch.nn.functional.pad(array, [size for both in reversed(missing) for size in both])


def _dtype(array: Array | Tensor) -> str:
    return dtype_name(array.dtype) if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")


def _pinned(array: Array) -> Tensor:
    """A copy in page-locked memory, from which the GPU copies while the CPU goes on; torch keeps such memory for the next call."""
    staged = torch.empty(array.shape, dtype=DTYPES[dtype_name(array.dtype)].torch, pin_memory=True)
    np.copyto(staged.numpy(), array)
    return staged


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
