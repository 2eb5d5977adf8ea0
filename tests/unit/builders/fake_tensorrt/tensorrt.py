"""TensorRT as far as a build needs it, for machines without a GPU: one layer per MatMul or plugin, a plan of JSON, a timing cache of names.

Only what both recorded APIs have is here, under the same names; a test holds it against them.
FAKE_TENSORRT chooses what goes wrong: `half` (no FP8 kernel), `other-gpu` (the timing cache is refused), `brief` (no details),
`no-library` (plugin libraries do not load).
"""

from __future__ import annotations

import json
import os
import signal
import weakref
from enum import IntEnum
from typing import Any

import onnx

__version__ = "10.6.0"
MOOD = os.environ.get("FAKE_TENSORRT", "")

DataType = IntEnum("DataType", ["FLOAT", "HALF", "INT64"], start=0)
TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)
BuilderFlag = IntEnum("BuilderFlag", ["TF32", "ERROR_ON_TIMING_CACHE_MISS"], start=0)
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=1)
ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["DETAILED"])
LayerInformationFormat = IntEnum("LayerInformationFormat", ["JSON"])
ExecutionContextAllocationStrategy = IntEnum("ExecutionContextAllocationStrategy", ["USER_MANAGED"])
_Severity = IntEnum("_Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)
_TYPES = {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.FLOAT16: DataType.HALF, onnx.TensorProto.INT64: DataType.INT64}


class ILogger:
    __slots__ = ()


class IProgressMonitor:
    __slots__ = ()


class ITensor:
    __slots__ = ("dtype", "name", "shape")

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name, self.dtype = value.name, _TYPES[kind.elem_type]
        self.shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]


class INetworkDefinition:
    __slots__ = ("_inputs", "_layers", "_outputs", "num_inputs", "num_outputs")

    def _take(self, model: onnx.ModelProto) -> None:
        self._inputs, self._outputs = (list(map(ITensor, values)) for values in (model.graph.input, model.graph.output))
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)
        fp8 = any(i.data_type == onnx.TensorProto.FLOAT8E4M3FN for i in model.graph.initializer) and MOOD != "half"
        kernel = "sm90_xmma_gemm_e4m3f16_e4m3f32_f32_tn" if fp8 else "sm90_xmma_gemm_f16f16_f16f32_f32_tn"
        kernels = {"MatMul": kernel, "KernelProgram": ""}
        self._layers = [(node.name, kernels[node.op_type]) for node in model.graph.node if node.op_type in kernels]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class IPluginRegistry:
    __slots__ = ("_libraries",)

    def __init__(self) -> None:
        self._libraries: list[str] = []

    def load_library(self, plugin_path: str) -> Any:
        known = plugin_path in self._libraries
        self._libraries.append(plugin_path)
        return None if known or MOOD == "no-library" else object()


_REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _REGISTRY


class OnnxParser:
    __slots__ = ("_network", "num_errors")

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self.num_errors = network, 0

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_model_from_string(model)
        self._network._take(parsed)
        return bool(_REGISTRY._libraries) or all(node.op_type != "KernelProgram" for node in parsed.graph.node)


class IOptimizationProfile:
    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    __slots__ = ("_kernels",)

    def __init__(self, content: bytes) -> None:
        self._kernels = set(json.loads(content or b"[]"))

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._kernels |= input_cache._kernels
        return True

    def serialize(self) -> bytes:
        return json.dumps(sorted(self._kernels)).encode()


class IBuilderConfig:
    __slots__ = ("_cache", "_flags", "_profiles", "plugins_to_serialize", "profiling_verbosity", "progress_monitor")

    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.profiling_verbosity: Any = None
        self.plugins_to_serialize: Any = ()
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        try:
            return ITimingCache(serialized_timing_cache)
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return MOOD != "other-gpu"

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    __slots__ = ("_logger",)

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        timed = {name for name, _ in network._layers}
        missed = timed - config._cache._kernels if config._cache else set()
        if missed and config.get_flag(BuilderFlag.ERROR_ON_TIMING_CACHE_MISS) and MOOD != "lenient":
            self._logger.log(_Severity.ERROR, f"timing cache miss: {sorted(missed)}")
            return None
        if config._cache:
            config._cache._kernels |= timed
        tensors = [(t.name, int(t.dtype), list(t.shape)) for t in (*network._inputs, *network._outputs)]
        plan = {
            "tensors": tensors,
            "inputs": network.num_inputs,
            "layers": network._layers,
            "libraries": list(config.plugins_to_serialize),
            "profiles": [p._shapes for p in config._profiles],
        }
        return _Memory(json.dumps(plan).encode())


class _Memory(bytes):
    __slots__ = ()

    @property
    def nbytes(self) -> int:
        return len(self)


class Runtime:
    __slots__ = ("_logger", "engine_host_code_allowed")

    def __init__(self, logger: Any) -> None:
        self._logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, plan: Any) -> ICudaEngine | None:
        content = json.loads(bytes(plan))
        return ICudaEngine(content) if self.engine_host_code_allowed or not content["libraries"] else None


class ICudaEngine:
    __slots__ = ("_plan", "num_io_tensors", "num_optimization_profiles")

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self.num_io_tensors, self.num_optimization_profiles = len(plan["tensors"]), len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return str(self._plan["tensors"][index][0])

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [tensor[0] for tensor in self._plan["tensors"][: self._plan["inputs"]]]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType(next(tensor[1] for tensor in self._plan["tensors"] if tensor[0] == name))

    def get_tensor_shape(self, name: str) -> Any:
        return next(tensor[2] for tensor in self._plan["tensors"] if tensor[0] == name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        return self._plan["profiles"][profile_index][name]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1000 * (profile_index + 1)

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        return IExecutionContext()

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan["layers"], self.num_optimization_profiles)


class IExecutionContext:
    __slots__ = ("__weakref__", "_profile", "_shapes")

    def __init__(self) -> None:
        self._profile, self._shapes = -1, {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._shapes[name] = list(shape)
        return True

    def get_tensor_shape(self, name: str) -> Any:
        return self._shapes["features"][:1]


class EngineInspector:
    """Asked of an engine with several profiles at the shapes of a context, TensorRT 10.6 answers with nothing.

    It does not own the context, and ends the process when asked after the context is gone.
    """

    __slots__ = ("_context", "_layers", "_profiles")

    def __init__(self, layers: list[tuple[str, str]], profiles: int) -> None:
        self._layers, self._profiles = layers, profiles
        self._context: Any = None

    @property
    def execution_context(self) -> Any:
        if self._context is None:
            return None
        if (context := self._context()) is None:
            os.kill(os.getpid(), signal.SIGSEGV)
        return context

    @execution_context.setter
    def execution_context(self, context: Any) -> None:
        self._context = weakref.ref(context)

    def get_engine_information(self, format: Any) -> str:
        if MOOD == "mute" or (self.execution_context is not None and self._profiles > 1):
            return ""
        if MOOD == "brief":
            return json.dumps({"Layers": [name for name, _ in self._layers]})
        rows = [-1, -1, 16] if self.execution_context is None else self.execution_context._shapes["features"]
        entries = [self._layer(n, *layer, rows, p) for p in range(self._profiles) for n, layer in enumerate(self._layers)]
        return json.dumps({"Layers": entries})

    def _layer(self, number: int, name: str, kernel: str, rows: Any, profile: int) -> dict[str, Any]:
        kind = "FP8" if "e4m3" in kernel else "Half"
        mark = f" [profile {profile}]" if profile else ""
        return {
            "Name": f"{name}_myl{profile}_{number}{mark}",
            "LayerType": "gemm" if kernel else "PluginV3",
            "Inputs": [{"Name": "x", "Dimensions": rows, "Format/Datatype": kind}],
            "Outputs": [{"Name": "y", "Dimensions": rows, "Format/Datatype": "Half"}],
            "TacticName": kernel,
            "Metadata": f"[ONNX Layer: {name}]",
        }
