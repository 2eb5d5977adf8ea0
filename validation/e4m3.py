"""Checks that ONNX Runtime rounds to E4M3 as the contract says: everything it says about FP8 rests on that."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import parser

from ..core.errors import GateError
from ..core.precision import E4M3_MAX
from ..runtime.onnxruntime_runner import OnnxRuntimeRunner


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
