"""A loaded plan and its execution contexts. TensorRT's silent failures become errors.

Memory, streams and graphs belong to the caller; this only sets shapes and addresses, and enqueues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import ArtifactError, GpuError
from .tensorrt_api import Bindings, ShapeRange, TensorInfo, dtype_name, layer_profiler

Shape = tuple[int, ...]

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation")
_CAPTURE_REFUSED = ("stream capturable", "stream is capturing", "streamcaptureunsupported")  # cudaErrorStreamCaptureUnsupported


class CaptureRefusedError(GpuError):
    """The plan does something, such as waiting for the GPU, that a CUDA graph cannot hold; outside of a capture it runs."""


class Engine:
    """A deserialized plan: its tensors, its profiles, and the device memory an execution needs.

    Args:
        bindings: The TensorRT that built it.
        plan: Content of the plan's file.
        where: Names the plan in errors.
        host_code: The plan carries a plugin library, whose code may run. Default: it may not.

    Raises:
        ArtifactError: TensorRT cannot read the plan; quotes its last message.
        GpuError: The GPU has no memory left for its weights.
    """

    def __init__(self, bindings: Bindings, plan: bytes | memoryview, where: str, *, host_code: bool = False) -> None:
        self.where = where
        self._trt, self._errors = bindings.library, _Errors()
        self._logger = bindings.logger(self._errors)
        self._runtime = self._trt.Runtime(self._logger)
        if self._runtime is None:
            raise self.failure("TensorRT cannot start on this GPU")
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.failure("TensorRT cannot load the plan")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        tensors = {mode: tuple(self._tensor(name) for name in names if self._mode(name) == mode) for mode in ("INPUT", "OUTPUT")}
        self.inputs, self.outputs = tensors["INPUT"], tensors["OUTPUT"]
        self.profiles = tuple(self._profile(number) for number in range(self._engine.num_optimization_profiles))

    @property
    def library(self) -> Any:
        """The library that loaded it, for the facades of this folder alone."""
        return self._trt

    @property
    def scratch_bytes(self) -> int:
        """Device memory that one execution needs beside inputs, outputs and weights, whichever the profile."""
        return max(int(self._engine.get_device_memory_size_for_profile_v2(number)) for number in range(len(self.profiles)))

    def execution(self, profile: int, scratch_address: int, scratch_bytes: int, stream: int) -> Execution:
        """A context for one profile. It uses the given device memory while it runs: contexts that share it must take turns.

        Raises:
            GpuError: The GPU has no memory left for what the context keeps to itself.
        """
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.failure("TensorRT cannot make an execution context")
        context.set_device_memory(scratch_address, scratch_bytes)
        if not context.set_optimization_profile_async(profile, stream):
            raise self.failure(f"TensorRT cannot select optimization profile {profile}")
        return Execution(self, context)

    def layer_information(self) -> str:
        """What the engine inspector says of every layer, as JSON. Needs no memory to run.

        Of a plan with one profile at that profile's typical shapes. Of one with several, dynamic dimensions are -1 and the
        layers of every profile but the first carry its number in their names: asked at shapes of a profile of such a plan,
        the inspector of TensorRT 10.6 answers with nothing, or ends the process.
        """
        inspector = self._engine.create_engine_inspector()
        context = self._at_typical_shapes() if len(self.profiles) == 1 else None  # must outlive the question: nobody else holds it
        if context is not None:
            inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _at_typical_shapes(self) -> Any:
        """A context of the first profile, without memory to run."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self.failure("TensorRT cannot make an execution context")
        Execution(self, context).set_inputs({name: typical for name, (_, typical, _) in self.profiles[0].items()})
        return context

    def _tensor(self, name: str) -> TensorInfo:
        return TensorInfo(name, dtype_name(self._engine.get_tensor_dtype(name)), tuple(self._engine.get_tensor_shape(name)))

    def _mode(self, name: str) -> str:
        return str(self._engine.get_tensor_mode(name).name)

    def _profile(self, number: int) -> Mapping[str, ShapeRange]:
        shapes = {tensor.name: self._engine.get_tensor_profile_shape(tensor.name, number) for tensor in self.inputs}
        return {name: (tuple(low), tuple(typical), tuple(high)) for name, (low, typical, high) in shapes.items()}

    def failure(self, what: str) -> ArtifactError | GpuError:
        """The error for a call that TensorRT answered with nothing, by what its log says."""
        said, self._errors.last = self._errors.last, ""
        if any(sign in said.lower() for sign in _OUT_OF_MEMORY):
            return GpuError(f"{what}: the GPU's memory is exhausted", where=self.where, hint=_LESS_MEMORY)
        if any(sign in said.lower() for sign in _CAPTURE_REFUSED):
            return CaptureRefusedError(f"{what} inside a CUDA graph: {said}", where=self.where, hint="run it without CUDA graphs: graphs=0")
        hint = "copy the plan again, or build it again on this machine"
        return ArtifactError(f"{what}: {said or 'it gives no reason'}", where=self.where, hint=hint)


class Execution:
    """An execution context bound to one profile."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context

    def set_inputs(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the shape of every input, which must lie within the profile; gives the shape of every output."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._engine.failure(f"TensorRT refuses the shape {list(shape)} of '{name}'")
        return {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self._engine.outputs}

    def bind(self, name: str, address: int) -> None:
        """Say where in device memory a tensor lies."""
        if not self._context.set_tensor_address(name, address):
            raise self._engine.failure(f"TensorRT refuses the address of '{name}'")

    def enqueue(self, stream: int) -> None:
        """Enqueue one execution; returns before it has run.

        Raises:
            CaptureRefusedError: A capture is under way on the stream, and the plan cannot be captured.
        """
        if not self._context.execute_async_v3(stream):
            raise self._engine.failure("TensorRT cannot run the plan")

    def layer_milliseconds(self, stream: int, wait: Callable[[], None]) -> list[tuple[str, float]]:
        """Run once with every layer timed by itself, in the order they ran; names are those of the engine inspector.

        Args:
            stream: Where it runs.
            wait: Waits for the stream; the times are complete afterwards.
        """
        times: list[tuple[str, float]] = []
        profiler = layer_profiler(self._engine.library, lambda name, milliseconds: times.append((name, milliseconds)))
        self._context.profiler = profiler
        self.enqueue(stream)
        wait()
        return times


_LESS_MEMORY = "use fewer execution contexts, a smaller largest batch or context in the profile, or end other programs on the GPU"


class _Errors:
    """Keeps the library's last error message."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, severity: str, message: str, /) -> None:
        if "ERROR" in severity:
            self.last = message
