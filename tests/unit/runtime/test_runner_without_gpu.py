"""The runner's own work, with the CPU in place of CUDA and a stand-in for TensorRT: shapes, filling up, gradients, errors, endings."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import GpuError, RequestError
from onerec_trt.runtime.execution_slot import ExecutionSlot
from onerec_trt.runtime.tensorrt_api import TensorInfo
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner

F = 3
INPUTS = (TensorInfo("features", "float16", (-1, -1, F)), TensorInfo("lengths", "int64", (-1, 3)))
OUTPUTS = (TensorInfo("scores", "float32", (-1, 4)),)
PROFILE = {"features": ((1, 2, F), (2, 4, F), (4, 8, F)), "lengths": ((1, 3), (2, 3), (4, 3))}
MakeRunner = Callable[..., TensorRtRunner]


class Stream:
    """Runs everything at once; remembers what was asked of it."""

    cuda_stream = 0
    asked: list[str]

    def wait_stream(self, stream: Any) -> None:
        self.asked.append("wait")

    def synchronize(self) -> None:
        self.asked.append("synchronize")


class Event:
    def record(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Execution:
    """An execution context; `enqueued` holds the input shapes of every run of any of them."""

    enqueued: list[dict[str, tuple[int, ...]]]
    full = False

    def set_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        self._shapes = dict(shapes)
        return {"scores": (shapes["features"][0], 4)}

    def bind(self, name: str, address: int) -> None:
        assert address

    def enqueue(self, stream: int) -> None:
        if self.full:
            raise torch.OutOfMemoryError("no room")
        self.enqueued.append(self._shapes)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty
    Stream.asked, Execution.enqueued = [], []

    def empty(*shape: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())


@pytest.fixture
def make_runner() -> MakeRunner:
    engine: Any = SimpleNamespace(scratch_bytes=8, profiles=(PROFILE,), inputs=INPUTS, outputs=OUTPUTS, execution=lambda *_: Execution())

    def make(graphs: int = 0) -> TensorRtRunner:
        runner = object.__new__(TensorRtRunner)
        runner.plan, runner.engine, runner.executions, runner._device = Path("a.plan"), engine, 1, 0
        runner._slots, runner._warming = SimpleQueue(), threading.Lock()
        runner._slots.put(ExecutionSlot(engine, graphs))
        return runner

    return make


def batch(requests: int, context: int) -> dict[str, Any]:
    return {"features": np.ones((requests, context, F), np.float16), "lengths": np.zeros((requests, 3), np.int64)}


def test_a_short_context_is_filled_up_on_its_way(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert runner(batch(2, 1))["scores"].shape == (2, 4)
    runner(batch(2, 5))
    assert [shapes["features"] for shapes in Execution.enqueued] == [(2, 2, F), (2, 5, F)]


@pytest.mark.parametrize("context", [0, 9])
def test_no_context_and_one_beyond_the_profile_are_refused(make_runner: MakeRunner, context: int) -> None:
    with pytest.raises(RequestError, match="beyond every profile"):
        make_runner()(batch(2, context))
    assert Execution.enqueued == []


def test_gradients_and_inference_mode_of_a_caller_stay_with_it(make_runner: MakeRunner) -> None:
    with torch.inference_mode():
        runner = make_runner()
        runner(batch(2, 3))
    tensors = {name: torch.from_numpy(array) for name, array in batch(2, 3).items()}
    for _ in range(3):
        runner(tensors | {"features": tensors["features"].clone().requires_grad_() * 2})
    slot = runner._slots.get()
    assert not slot._buffers["features"].requires_grad
    assert slot._buffers["features"][: 2 * 3 * F].tolist() == [2] * (2 * 3 * F)


def test_exhausted_memory_is_a_typed_error_and_the_slot_comes_back(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner()
    monkeypatch.setattr(Execution, "full", True)
    with pytest.raises(GpuError, match="memory is exhausted"):
        runner(batch(2, 3))
    monkeypatch.setattr(Execution, "full", False)
    runner(batch(2, 3))


def test_memory_exhausted_by_warming_up_is_a_typed_error(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    real, runner = torch.zeros, make_runner()
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **options: real(*shape, **options))
    monkeypatch.setattr(Execution, "full", True)
    with pytest.raises(GpuError, match="memory is exhausted"):
        runner.warm_up(2, 3)
    monkeypatch.setattr(Execution, "full", False)
    runner.warm_up(2, 3)
    assert len(Execution.enqueued) == 3


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            RuntimeError("operation failed due to a previous error during capture\nmore"),
            "could not be captured: operation failed .* capture$",
        ),
        (torch.OutOfMemoryError("no room"), "memory is exhausted"),
    ],
)
def test_a_capture_that_fails_is_a_typed_error_and_the_slot_comes_back(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, problem: RuntimeError, message: str
) -> None:
    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        yield
        raise problem

    runner = make_runner(graphs=1)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    runner(batch(2, 3))  # a shape's first use is not captured
    with pytest.raises(GpuError) as caught:
        runner(batch(2, 3))
    assert re.search(message, caught.value.what)
    runner(batch(1, 3))


def test_a_runner_that_goes_waits_for_what_it_runs(make_runner: MakeRunner) -> None:
    runner = make_runner()
    pending = runner.submit(batch(2, 3))
    Stream.asked.clear()
    del runner
    assert Stream.asked == ["synchronize"]
    assert pending.result()["scores"].shape == (2, 4)
