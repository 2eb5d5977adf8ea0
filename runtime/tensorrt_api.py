"""The only importer of `tensorrt` and `tensorrt_rtx`: parse an ONNX file, build a plan.

What differs between TensorRT 10.6 to 11.x and TensorRT-RTX is handled here: no other module asks for a version.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from ..core.dtypes import FROM_TENSORRT
from ..core.errors import BuildError, MissingExtraError

Target = Literal["tensorrt-rtx", "tensorrt"]
ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

_MODULES: dict[Target, tuple[str, str]] = {"tensorrt-rtx": ("tensorrt_rtx", "rtx"), "tensorrt": ("tensorrt", "tensorrt")}

_SEE_LOG = "the builder's last errors say why"
_MISS = "the timing cache may lack a kernel; build once with strict_timing_cache off to fill it"
_NEW_CACHE = "delete the file from the folder build.timing_cache, or name another folder; the next build starts a new one"


class LogSink(Protocol):
    """Receives each message of the library; `severity` is INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""

    def __call__(self, severity: str, message: str, /) -> None: ...


class ProgressSink(Protocol):
    """Receives the builder's phases as they run.

    A phase starts with its number of steps and the phase it belongs to (empty: none), each step
    of it completes once, then it finishes. Phases nest.
    """

    def started(self, phase: str, parent: str, steps: int) -> None: ...

    def stepped(self, phase: str) -> None: ...

    def finished(self, phase: str) -> None: ...


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a network. `shape` has -1 for a dynamic dimension, `dtype` is a name such as float16."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class PlanBytes(Protocol):
    """A built plan in memory; supports the buffer protocol, so that writing it makes no copy."""

    @property
    def nbytes(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...


@dataclass(frozen=True)
class BuiltPlan:
    """What a build gives: the plan, the builder flags that were set, and the timing cache with what this build measured."""

    plan: PlanBytes
    builder_flags: tuple[str, ...]
    timing_cache: bytes | None


class Bindings:
    """One installed TensorRT: its version, and the two things this product asks of it."""

    def __init__(self, target: Target, module: Any) -> None:
        self.target: Target = target
        self.version = str(module.__version__)
        self._trt = module

    def buildable_without_gpu(self) -> tuple[str, ...]:
        """Compute capabilities a plan can be built for on any machine, such as '8.9'; empty where a build needs its GPU."""
        names = getattr(getattr(self._trt, "ComputeCapability", None), "__members__", {})
        digits = sorted((name[2:] for name in names if name.startswith("SM")), key=int)
        return tuple(f"{d[:-1]}.{d[-1]}" for d in digits)

    @property
    def library(self) -> Any:
        """The library itself, for the facades of this folder alone."""
        return self._trt

    def logger(self, log: LogSink) -> Any:
        """An object of the library that passes its messages on. It is never freed, and `log` with it: it should hold nothing large."""
        return _logger(self._trt, log)

    def parse(self, model: bytes, beside: Path, log: LogSink, plugin_libraries: Sequence[Path] = ()) -> Network:
        """Parse a serialized ONNX model.

        Args:
            model: The protobuf, below 2 GB; larger weights are external.
            beside: Path in whose folder the external data lies.
            log: Receives the library's messages.
            plugin_libraries: Libraries of the plugins that the model uses; a plan will carry them. Default: none.

        Raises:
            BuildError: A plugin library does not load, or the parser refuses the model; names each node it refuses.
        """
        return Network(self._trt, model, beside, log, plugin_libraries)


class Network:
    """A parsed network with the objects of the library that must outlive it."""

    def __init__(self, trt: Any, model: bytes, beside: Path, log: LogSink, plugin_libraries: Sequence[Path] = ()) -> None:
        self._trt = trt
        self._logger = _logger(trt, log)
        self._builder = trt.Builder(self._logger)
        self._network = self._builder.create_network(_strongly_typed(trt))
        self._plugin_libraries = [str(path) for path in plugin_libraries]
        for path in self._plugin_libraries:
            _load_plugins(trt, path)
        self._parser = trt.OnnxParser(self._network, self._logger)
        if not self._parser.parse(model, path=str(beside)):
            raise BuildError("TensorRT cannot read the graph: " + "; ".join(self._parser_errors()), where=str(beside))
        self.inputs = tuple(_tensor(self._network.get_input(i)) for i in range(self._network.num_inputs))
        self.outputs = tuple(_tensor(self._network.get_output(i)) for i in range(self._network.num_outputs))

    def build(
        self,
        *,
        compute_capability: str | None,
        profiles: Sequence[Mapping[str, ShapeRange]],
        progress: ProgressSink | None = None,
        timing_cache: bytes | None = None,
        strict_timing_cache: bool = False,
    ) -> BuiltPlan:
        """Build the plan.

        Args:
            compute_capability: Such as '8.9', one of `Bindings.buildable_without_gpu`; None: that of the GPU in this machine.
            profiles: For each optimization profile the (minimum, typical, maximum) shape of every input.
            progress: Receives the builder's phases.
            timing_cache: Kernel timings of earlier builds; empty: none yet; None: the build neither reads nor keeps any.
            strict_timing_cache: A kernel without a timing in the cache fails the build, at the latest when it ends.

        Raises:
            BuildError: TensorRT refuses the network, a profile or the timing cache.
        """
        config = self._builder.create_builder_config()
        if timing_cache is not None:
            self._use_timing_cache(config, timing_cache, strict_timing_cache)
        config.clear_flag(self._trt.BuilderFlag.TF32)  # on by default; numerics: what the graph says in FP32 stays FP32
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED  # so that the engine can be asked what it runs
        if self._plugin_libraries:
            config.plugins_to_serialize = self._plugin_libraries
        if compute_capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(self._trt.ComputeCapability, f"SM{compute_capability.replace('.', '')}"), 0)
        for number, profile in enumerate(profiles):
            self._add_profile(config, number, profile)
        if progress is not None:
            config.progress_monitor = _progress_monitor(self._trt, progress)
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            raise BuildError("TensorRT cannot build the plan", hint=_MISS if strict_timing_cache else _SEE_LOG)
        flags = tuple(sorted(name for name, flag in self._trt.BuilderFlag.__members__.items() if config.get_flag(flag)))
        timings = None if timing_cache is None else _content(config.get_timing_cache().serialize())
        if strict_timing_cache and len(timings or b"") > len(timing_cache or b""):
            # The library's own flag does not cover the layers that its graph compiler builds; what it timed is in the cache now.
            raise BuildError("the build timed kernels that the timing cache lacks", hint=_MISS)
        return BuiltPlan(cast(PlanBytes, plan), flags, timings)

    def merge_timing_caches(self, first: bytes, second: bytes) -> bytes:
        """One timing cache of two; where both know a kernel, the first counts.

        Raises:
            BuildError: They are not of the same library and GPU.
        """
        config = self._builder.create_builder_config()
        merged, other = (self._timing_cache(config, content) for content in (first, second))
        if not merged.combine(other, ignore_mismatch=False):
            raise BuildError("TensorRT cannot merge the timing caches: they are of different libraries or GPUs", hint=_NEW_CACHE)
        return _content(merged.serialize())

    def _use_timing_cache(self, config: Any, content: bytes, strict: bool) -> None:
        if not config.set_timing_cache(self._timing_cache(config, content), ignore_mismatch=False):
            raise BuildError("TensorRT refuses the timing cache: it is of another library or GPU", hint=_NEW_CACHE)
        if strict:
            config.set_flag(self._trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)

    def _timing_cache(self, config: Any, content: bytes) -> Any:
        cache = config.create_timing_cache(content)
        if cache is None:
            raise BuildError("TensorRT cannot read the timing cache: it is damaged", hint=_NEW_CACHE)
        return cache

    def _add_profile(self, config: Any, number: int, shapes: Mapping[str, ShapeRange]) -> None:
        profile = self._builder.create_optimization_profile()
        for name, (minimum, typical, maximum) in shapes.items():
            profile.set_shape(name, minimum, typical, maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT refuses optimization profile {number}: {dict(shapes)}", hint="the reason stands in the builder's log"
            )

    def _parser_errors(self) -> list[str]:
        errors = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
        return [f"{e.desc()} (node '{e.node_name()}', operator {e.node_operator() or 'unknown'})" for e in errors] or ["no reason given"]


def load(target: Target) -> Bindings:
    """Import the bindings of a TensorRT.

    Raises:
        MissingExtraError: They are not installed, or their libraries cannot be loaded; names the extra.
    """
    module, extra = _MODULES[target]
    hint = f"pip install 'onerec-trt[{extra}]'"
    try:
        return Bindings(target, importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{target} is not installed: {error}", where=module, hint=hint) from None
    except (ImportError, OSError, AttributeError) as error:  # a shared library is missing, or the wheel is a half-made one
        raise MissingExtraError(
            f"{target} is installed but does not load: {error}", where=module, hint=f"install it anew: {hint}"
        ) from error


@cache
def _load_plugins(trt: Any, path: str) -> None:
    """Register the plugins of a library, once in a process: the registry refuses those that it has already."""
    if trt.get_plugin_registry().load_library(path) is None:
        raise BuildError("TensorRT cannot load the plugin library", where=path, hint=_SEE_LOG)


def _content(memory: Any) -> bytes:
    """A copy of memory that the library owns."""
    return bytes(memoryview(memory))


def _strongly_typed(trt: Any) -> int:
    """Flags of a strongly typed network: a flag in TensorRT 10, the only kind of network where the flag is gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _tensor(tensor: Any) -> TensorInfo:
    return TensorInfo(tensor.name, dtype_name(tensor.dtype), tuple(tensor.shape))


def dtype_name(dtype: Any) -> str:
    """A data type of the library by its usual name, such as float16."""
    name = str(dtype.name)
    return FROM_TENSORRT[name].name if name in FROM_TENSORRT else name.lower()


# Never freed. TensorRT's plugin registry lives as long as the process and keeps a pointer to a logger, also of an engine or a builder that
# is gone (https://nvidia.github.io/TensorRT-Edge-LLM/latest/cpp_api/common/trtInterop.html, TrtLogger). That may be why
# a process of the tests crashed while it loaded a plugin library.
_LOGGERS: list[Any] = []


def _logger(trt: Any, log: LogSink) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log(severity.name, message)

    _LOGGERS.append(logger := Logger())
    return logger


def layer_profiler(trt: Any, sink: Callable[[str, float], None]) -> Any:
    """An object of the library that receives the milliseconds of each layer of an execution."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            sink(layer_name, ms)

    return Profiler()


def _progress_monitor(trt: Any, sink: ProgressSink) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            sink.started(phase, parent or "", steps)

        def step_complete(self, phase: str, step: int) -> bool:
            sink.stepped(phase)
            return True

        def phase_finish(self, phase: str) -> None:
            sink.finished(phase)

    return Monitor()
