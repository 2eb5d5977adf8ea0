"""The runner's own work, with the CPU in place of CUDA and a stand-in for TensorRT: shapes, gradients, errors, resident inputs, endings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import GpuError, RequestError
from onerec_trt.core.graph_io import GraphIO, GraphTensor, Role
from onerec_trt.runtime.engine import CaptureRefusedError
from onerec_trt.runtime.loaded_plan import LoadedPlan
from onerec_trt.runtime.tensorrt_api import TensorInfo
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner

from .cpu_as_cuda import Stream, use_cpu

F = 3
IO = GraphIO(
    inputs=(
        GraphTensor(name="features", role=Role.CONTEXT_FEATURES, dtype="float16", axes=("batch", "context", F)),
        GraphTensor(name="lengths", role=Role.PATHWAY_LENGTHS, dtype="int64", axes=("batch", 3)),
    ),
    outputs=(GraphTensor(name="scores", role=Role.ITEM_SCORES, dtype="float32", axes=("batch", 4)),),
    min_context=2,
)
INDEX = GraphTensor(name="index", role=None, dtype="int32", axes=(2,), kind="resident")
INPUTS = (TensorInfo("features", "float16", (-1, -1, F)), TensorInfo("lengths", "int64", (-1, 3)))
OUTPUTS = (TensorInfo("scores", "float32", (-1, 4)),)
PROFILE = {"features": ((1, 2, F), (2, 4, F), (4, 8, F)), "lengths": ((1, 3), (2, 3), (4, 3))}
MakeRunner = Callable[..., TensorRtRunner]


class Execution:
    """An execution context; `enqueued` holds the input shapes of every run of any of them."""

    enqueued: list[dict[str, tuple[int, ...]]]
    bound: set[str]
    full = False

    def set_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        self._shapes = dict(shapes)
        return {"scores": (shapes["features"][0], 4)}

    def bind(self, name: str, address: int) -> None:
        assert address
        self.bound.add(name)

    def enqueue(self, stream: int) -> None:
        if self.full:
            raise torch.OutOfMemoryError("no room")
        self.enqueued.append(self._shapes)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    Execution.enqueued, Execution.bound = [], set()


@pytest.fixture
def make_runner() -> MakeRunner:
    """`resident`: the plan also has the resident input `index`."""

    def make(graphs: int = 0, *, resident: bool = False, executions: int = 1, capture_in_use: bool = True) -> TensorRtRunner:
        io = IO.model_copy(update={"inputs": (*IO.inputs, INDEX)}) if resident else IO
        inputs = (*INPUTS, TensorInfo("index", "int32", (2,))) if resident else INPUTS
        profile = {**PROFILE, "index": ((2,), (2,), (2,))} if resident else PROFILE
        engine: Any = SimpleNamespace(
            where="a.plan", scratch_bytes=8, profiles=(profile,), inputs=inputs, outputs=OUTPUTS, execution=lambda *_: Execution()
        )
        loaded = LoadedPlan(Path("a.plan"), "0" * 64, io, engine, device=0)
        return TensorRtRunner(loaded, executions=executions, graphs=graphs, capture_in_use=capture_in_use)

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


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[RuntimeError | None]:
    """How each capture ends, in turn; None and those beyond the list: well."""
    ends: list[RuntimeError | None] = []

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        ran = len(Execution.enqueued)
        yield
        del Execution.enqueued[ran:]
        if ends and (problem := ends.pop(0)) is not None:
            raise problem

    real = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **options: real(*shape, **options))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return ends


BROKEN = RuntimeError("operation failed due to a previous error during capture\nmore")


def test_a_broken_capture_costs_the_batch_nothing_and_is_tried_again(
    make_runner: MakeRunner, capturing: list[RuntimeError | None], caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_runner(graphs=2)
    capturing.append(BROKEN)
    for uses, graphs in enumerate((0, 0, 0, 1), 1):
        assert runner(batch(2, 3))["scores"].shape == (2, 4)
        assert (len(Execution.enqueued), runner.graphs) == (uses, graphs)
    runner(batch(2, 3))
    assert len(Execution.enqueued) == 4, "it ran from its graph"
    (record,) = caplog.records
    assert "a batch runs without a CUDA graph" in record.getMessage()
    assert record.getMessage().endswith("due to a previous error during capture")


def test_a_gpu_without_room_for_more_graphs_runs_new_shapes_without_and_says_so_once(
    make_runner: MakeRunner,
    capturing: list[RuntimeError | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = make_runner(graphs=3)
    runner.warm_up(2, 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((1 << 30) - 1, 1 << 36))
    for context in (4, 5):
        runner.warm_up(2, context)
        assert runner(batch(2, context))["scores"].shape == (2, 4)
    assert runner.graphs == 1
    (record,) = caplog.records
    assert "a.plan: new shapes run without a CUDA graph" in record.getMessage()
    assert "1023 MiB of the GPU are free" in record.getMessage()
    ran = len(Execution.enqueued)
    runner(batch(2, 3))
    assert len(Execution.enqueued) == ran, "what was captured before still runs from its graph"


def test_memory_that_runs_out_in_a_capture_ends_captures(
    make_runner: MakeRunner, capturing: list[RuntimeError | None], caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_runner(graphs=2)
    capturing.append(torch.OutOfMemoryError("no room"))
    for _ in range(6):
        runner(batch(2, 3))
    assert (len(Execution.enqueued), runner.graphs, len(caplog.records)) == (6, 0, 1)


@pytest.mark.parametrize("torch_complains", [True, False])
def test_a_plan_that_cannot_be_captured_runs_without_graphs_and_says_so(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, torch_complains: bool
) -> None:
    refuses: list[bool] = []

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        refuses.append(True)
        yield
        refuses.clear()
        if torch_complains:
            raise RuntimeError("operation failed due to a previous error during capture")

    def enqueue(self: Execution, stream: int) -> None:
        if refuses:
            raise CaptureRefusedError("TensorRT cannot run the plan: not stream capturable", where="a.plan")
        self.enqueued.append(self._shapes)

    runner = make_runner(graphs=4)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(Execution, "enqueue", enqueue)
    for _ in range(2):
        for context in (3, 4):
            assert runner(batch(2, context))["scores"].shape == (2, 4)
    assert len(Execution.enqueued) == 4  # each batch ran once
    (record,) = caplog.records  # said once, not at every shape
    assert record.levelname == "WARNING"
    assert "a.plan" in record.getMessage()
    assert "not stream capturable" in record.getMessage()


def test_graphs_are_captured_in_use_or_while_warming_up_alone(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        captured.append(1)
        yield

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, device: zeros(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    for capture_in_use, captures in ((True, 1), (False, 0)):
        runner = make_runner(graphs=2, capture_in_use=capture_in_use)
        for _ in range(3):
            runner(batch(2, 3))
        assert len(captured) == captures
        captured.clear()
    runner.warm_up(2, 3)
    assert captured == [1]
    ran = len(Execution.enqueued)
    assert runner(batch(2, 3))["scores"].shape == (2, 4)
    assert len(Execution.enqueued) == ran, "it ran from its graph"


def test_a_runner_that_goes_waits_for_what_it_runs(make_runner: MakeRunner) -> None:
    runner = make_runner()
    pending = runner.submit(batch(2, 3))
    Stream.asked.clear()
    del runner
    assert Stream.asked == ["synchronize"]
    assert pending.result()["scores"].shape == (2, 4)


def test_a_resident_input_is_bound_before_the_first_batch(make_runner: MakeRunner) -> None:
    runner = make_runner(resident=True)
    assert "index" in Execution.bound
    with pytest.raises(RequestError, match="resident input not bound: index") as caught:
        runner(batch(2, 3))
    assert "bind_resident" in caught.value.hint
    with pytest.raises(RequestError, match="not bound"):
        runner.warm_up(2, 3)
    runner.bind_resident("index", np.array([3, 4], np.int32))
    assert runner(batch(2, 3))["scores"].shape == (2, 4)
    assert Execution.enqueued == [{"features": (2, 3, F), "lengths": (2, 3)}]  # it did not come with the batch


def test_a_resident_input_is_swapped_in_its_place_between_batches(make_runner: MakeRunner) -> None:
    runner = make_runner(resident=True, executions=3)
    buffer = runner._residents.buffers["index"]
    address = buffer.data_ptr()
    array = np.array([3, 4], np.int32)
    runner.bind_resident("index", array)
    array[:] = 0  # an array may change once it was bound
    assert buffer.tolist() == [3, 4]
    Stream.asked.clear()
    with torch.inference_mode():
        runner.bind_resident("index", torch.tensor([5, 6], dtype=torch.int32))
    assert (buffer.tolist(), buffer.data_ptr()) == ([5, 6], address)  # what CUDA graphs have captured stays right
    assert Stream.asked == ["wait"] * 5  # the copy for the caller, then one stream for two others, and they for it
    runner(batch(2, 3))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("features", np.zeros((2, 3, F), np.float16), "'features' is no resident input of the plan"),
        ("index", np.zeros(2, np.int64), "'index' is int64, the plan takes int32"),
        ("index", np.zeros(3, np.int32), r"'index' has shape \[3\], the plan takes \[2\]"),
        ("index", np.zeros(2, np.dtype(np.int32).newbyteorder()), "'index' is .i4, the plan takes int32"),
        ("index", [1, 2], "'index' is a list, not an array"),
    ],
)
def test_what_cannot_be_bound_is_named_and_changes_nothing(make_runner: MakeRunner, name: str, array: Any, message: str) -> None:
    runner = make_runner(resident=True)
    runner.bind_resident("index", np.array([3, 4], np.int32))
    with pytest.raises(RequestError, match=message):
        runner.bind_resident(name, array)
    assert runner._residents.buffers["index"].tolist() == [3, 4]
    runner(batch(2, 3))
