"""The reference runner: ONNX Runtime on CPU, and a test of its E4M3 rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import parser

from ..core.errors import GateError, RequestError
from ..core.precision import E4M3_MAX
from ..core.threads import ONNXRUNTIME_SESSION, thread_count
from ..operators.operator import Array


class OnnxRuntimeRunner:
    """Runs one ONNX file on CPU.

    Args:
        model: Path of a file (external data beside it is found), or a model in memory.
        threads: Threads within an operator; 0: see `core.threads.thread_count`. Results do not depend on it.

    The optimization level is BASIC: above it ONNX Runtime fuses DequantizeLinear(FP8) with MatMul
    into an operator it then refuses to load.
    """

    def __init__(self, model: Path | onnx.ModelProto, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = threads or thread_count()  # left to itself, ONNX Runtime ties one thread to each core
        for key, value in ONNXRUNTIME_SESSION.items():
            options.add_session_config_entry(key, value)
        options.log_severity_level = 3
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.input_names = [i.name for i in self._session.get_inputs()]
        self.output_names = [o.name for o in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            RequestError: An input is missing, unknown, or of a wrong type or shape.
        """
        try:
            outputs = self._session.run(None, dict(inputs))
        except (ValueError, ort.capi.onnxruntime_pybind11_state.InvalidArgument) as error:
            raise RequestError(f"ONNX Runtime refused the inputs: {error}", where=", ".join(self.input_names)) from None
        return dict(zip(self.output_names, outputs, strict=True))


def e4m3_self_test() -> int:
    """Compare ONNX Runtime's E4M3 rounding with ml_dtypes for every FP16 value; returns how many were compared.

    Beyond 464 ml_dtypes gives NaN where the contract saturates, so it is asked for the clipped value.

    Raises:
        GateError: A code differs: nothing this reference says about FP8 can be trusted.
    """
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) {'
        " one = Constant<value_float = 1.0>() q = QuantizeLinear<output_dtype = 17>(x, one) y = DequantizeLinear(q, one) }"
    )
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = values[np.isfinite(values)]
    actual = OnnxRuntimeRunner(model, threads=1)({"x": values})["y"]
    expected = np.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    wrong = np.flatnonzero(actual != expected)
    if len(wrong):
        first = wrong[0]
        raise GateError(
            f"ONNX Runtime rounds {len(wrong)} values to E4M3 differently from ml_dtypes",
            where=f"{values[first]} became {actual[first]}, expected {expected[first]}",
            hint="install the onnxruntime version of the lock file",
        )
    return len(values)
