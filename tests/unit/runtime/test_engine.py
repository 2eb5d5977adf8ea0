"""A loaded plan: what TensorRT answers with nothing becomes a typed error."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from onerec_trt.core.errors import ArtifactError, GpuError
from onerec_trt.runtime import tensorrt_api
from onerec_trt.runtime.engine import CaptureRefusedError, Engine


class FakeContext:
    __slots__ = ("addresses", "calls", "library", "profiler", "shapes")

    def __init__(self, library: FakeLibrary) -> None:
        self.profiler: Any = None
        self.library, self.shapes, self.addresses, self.calls = library, {}, {}, []

    def set_device_memory(self, memory: int, size: int) -> None:
        self.calls.append(("memory", memory, size))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.calls.append(("profile", profile_index, stream_handle))
        return self.library.answers("profile")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.library.answers("shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "scores"
        return self.shapes["features"][:1]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self.library.answers("address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.calls.append(("run", stream_handle))
        if self.profiler is not None:
            self.profiler.report_layer_time("gemm", 1.5)
            self.profiler.report_layer_time("norm", 0.25)
        return self.library.answers("run")


class FakeEngine:
    """One input `features` FP16 [B, 4], one output `scores` FP32 [B], two profiles."""

    __slots__ = ("library",)
    num_io_tensors, num_optimization_profiles = 2, 2

    def __init__(self, library: FakeLibrary) -> None:
        self.library = library

    def get_tensor_name(self, index: int) -> str:
        return ("features", "scores")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name == "features" else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF" if name == "features" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4) if name == "features" else (-1,)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        high = (1, 8)[profile_index]
        return [(1, 4), (high, 4), (high, 4)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return (100, 800)[profile_index]

    def create_execution_context(self, strategy: object) -> FakeContext | None:
        assert strategy == "user managed"
        return FakeContext(self.library) if self.library.answers("context") else None


class FakeLibrary:
    """A TensorRT that answers one call (`broken`) with nothing, after logging `message`."""

    __version__ = "10.6.0"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    def __init__(self, broken: str = "", message: str = "") -> None:
        self.broken, self.message = broken, message
        library = self

        class Logger:
            __slots__ = ()

            def __init__(self) -> None: ...

        class Profiler:
            __slots__ = ()

            def __init__(self) -> None: ...

        class Runtime:
            __slots__ = ("engine_host_code_allowed",)

            def __init__(self, logger: Any) -> None:
                self.engine_host_code_allowed = False
                library.log = lambda severity, text: logger.log(SimpleNamespace(name=severity), text)

            def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
                assert plan == b"plan"
                library.host_code = self.engine_host_code_allowed
                return FakeEngine(library) if library.answers("plan") else None

        self.ILogger, self.IProfiler, self.Runtime = Logger, Profiler, Runtime

    def answers(self, call: str) -> bool:
        if call != self.broken:
            return True
        self.log("WARNING", "not this")
        if self.message:
            self.log("ERROR", self.message)
            self.log("INFO", "nor that")
        return False


def test_the_stand_ins_take_what_tensorrt_takes_and_nothing_else(stands_for: Callable[..., None]) -> None:
    stands_for(FakeContext, "IExecutionContext", frozenset({"addresses", "calls", "library", "shapes"}))
    stands_for(FakeEngine, "ICudaEngine", frozenset({"library"}))
    library = FakeLibrary()
    for name in ("ILogger", "IProfiler", "Runtime"):
        stands_for(getattr(library, name), name)


def load(library: FakeLibrary) -> Engine:
    return Engine(tensorrt_api.Bindings("tensorrt", library), b"plan", "sm90.plan")


@pytest.mark.parametrize("allowed", [False, True])
def test_code_in_a_plan_runs_only_where_it_is_allowed(allowed: bool) -> None:
    library = FakeLibrary()
    Engine(tensorrt_api.Bindings("tensorrt", library), b"plan", "sm90.plan", host_code=allowed)
    assert library.host_code is allowed


def test_says_what_the_plan_takes_and_gives() -> None:
    engine = load(FakeLibrary())
    assert engine.inputs == (tensorrt_api.TensorInfo("features", "float16", (-1, 4)),)
    assert engine.outputs == (tensorrt_api.TensorInfo("scores", "float32", (-1,)),)
    assert engine.profiles == ({"features": ((1, 4), (1, 4), (1, 4))}, {"features": ((1, 4), (8, 4), (8, 4))})
    assert engine.scratch_bytes == 800


def test_runs_in_the_memory_and_on_the_stream_it_is_given() -> None:
    execution = load(FakeLibrary()).execution(1, scratch_address=4096, scratch_bytes=800, stream=7)
    assert execution.set_inputs({"features": (3, 4)}) == {"scores": (3,)}
    execution.bind("features", 64)
    execution.enqueue(9)
    context = execution._context
    assert context.calls == [("memory", 4096, 800), ("profile", 1, 7), ("run", 9)]
    assert context.addresses == {"features": 64}


def test_layers_are_timed_in_the_order_they_run() -> None:
    execution, waited = load(FakeLibrary()).execution(0, 0, 0, 7), []
    assert execution.layer_milliseconds(7, lambda: waited.append(True)) == [("gemm", 1.5), ("norm", 0.25)]
    assert waited == [True]


def _use(engine: Engine) -> None:
    execution = engine.execution(0, 0, 0, 0)
    execution.set_inputs({"features": (1, 4)})
    execution.bind("features", 0)
    execution.enqueue(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("plan", "cannot load the plan: Serialization assertion failed"),
        ("context", "cannot make an execution context: Serialization"),
        ("profile", "cannot select optimization profile 0"),
        ("shape", r"refuses the shape \[1, 4\] of 'features'"),
        ("address", "refuses the address of 'features'"),
        ("run", "cannot run the plan"),
    ],
)
def test_a_call_answered_with_nothing_is_an_error_with_the_reason(call: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        _use(load(FakeLibrary(call, "Serialization assertion failed")))
    assert caught.value.where == "sm90.plan"


@pytest.mark.parametrize("call", ["plan", "context", "run"])
@pytest.mark.parametrize(
    "message", ["Requested amount of GPU memory (1 GiB) could not be allocated: OutOfMemory", "Cuda Runtime (out of memory)"]
)
def test_exhausted_memory_is_told_apart(call: str, message: str) -> None:
    with pytest.raises(GpuError, match="memory is exhausted") as caught:
        _use(load(FakeLibrary(call, message)))
    assert "fewer execution contexts" in caught.value.hint


@pytest.mark.parametrize(
    "message", ["Cuda Runtime (operation not permitted when stream is capturing)", "IExecutionContext: the plan is not stream capturable"]
)
def test_a_plan_that_refuses_a_capture_is_told_apart(message: str) -> None:
    with pytest.raises(CaptureRefusedError, match=re.escape(message)) as caught:
        _use(load(FakeLibrary("run", message)))
    assert (caught.value.where, caught.value.hint) == ("sm90.plan", "run it without CUDA graphs: graphs=0")


def test_a_library_without_a_reason_is_said_to_have_none() -> None:
    with pytest.raises(ArtifactError, match="it gives no reason"):
        load(FakeLibrary("plan"))
