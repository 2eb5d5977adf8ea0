"""A graph of real operators, as the export stage writes it: two steps whose FP8 products share one weight. And kernels for it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import Input, InputType, Int32, Kernel, Launch, Output, Program, Tensor, Variant, cdiv, dim
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onnx import TensorProto, helper, numpy_helper

from .contract import with_contract

WIDTH = 64
STEPS = ("step0.q", "step1.q")
WEIGHT, SCALE = "q.weight", "q.weight_scale"
CODES = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(ml_dtypes.float8_e4m3fn)


def operator_graph(folder: Path) -> Path:
    """Writes `model.onnx` and `scoring.onnx`, the same graph, with `weights.data`; gives the first.

    features -> norm -> codes -> step0.q -> quantize -> step1.q -> scores.
    """
    nodes = [
        helper.make_node("RmsNormQuantRow", ["features", "norm.weight"], ["n.0", "n.1", "n.2"], "norm", domain="onerec", epsilon=1e-6),
        helper.make_node("Fp8Linear", ["n.0", "n.1", WEIGHT, SCALE], ["q0"], STEPS[0], domain="onerec", promotion=0),
        helper.make_node("QuantRow", ["q0"], ["c.0", "c.1"], "quantize", domain="onerec"),
        helper.make_node("Fp8Linear", ["c.0", "c.1", WEIGHT, SCALE], ["scores"], STEPS[1], domain="onerec", promotion=0),
        helper.make_node("Identity", ["lengths"], ["sids"], "sids"),
    ]
    rows = ["batch", "context"]
    values = [
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT8E4M3FN, [*rows, WIDTH]) for name in ("n.0", "c.0")),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [*rows, 1]) for name in ("n.1", "c.1")),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT16, [*rows, WIDTH]) for name in ("n.2", "q0")),
    ]
    initializers = [
        helper.make_tensor(WEIGHT, TensorProto.FLOAT8E4M3FN, CODES.shape, CODES.tobytes(), raw=True),
        numpy_helper.from_array(np.full(WIDTH, 0.01, np.float32), SCALE),
        numpy_helper.from_array(np.ones(WIDTH, np.float16), "norm.weight"),
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT16, [*rows, WIDTH])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT16, [*rows, WIDTH])
    lengths, sids = (helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", 3]) for name in ("lengths", "sids"))
    graph = helper.make_graph(nodes, "small", [features, lengths], [sids, scores], initializers, value_info=values)
    functions = functions_of(OPERATORS[name] for name in ("RmsNormQuantRow", "QuantRow", "Fp8Linear"))
    model = with_contract(helper.make_model(graph, opset_imports=opset_imports(), functions=functions, ir_version=10))
    folder.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString()
    for name in ("model", "scoring"):
        copy = onnx.load_model_from_string(content)
        onnx.save(copy, str(folder / f"{name}.onnx"), save_as_external_data=True, location=f"{name}.data", size_threshold=1024)
    return folder / "model.onnx"


def kernel(entry: str) -> Kernel:
    return Kernel(cubin=f"cubin of {entry}".encode(), entry=entry, warps=4, shared_bytes=0, global_scratch_bytes=0)


def program(entry: str, inputs: tuple[InputType, ...], outputs: tuple[Tensor, ...]) -> Program:
    """One launch over the rows."""
    rows = dim(0, 0) * dim(0, 1)
    arguments = (*map(Input, range(len(inputs))), *map(Output, range(len(outputs))), Int32(rows))
    return Program(inputs, outputs, (Variant(1, (Launch(kernel(entry), (cdiv(rows, 128), 1, 1), arguments),)),))


def fp8_linear(node: Node) -> Program:
    """[..., K] codes by [N, K] to [..., N] in FP16."""
    return program("fp8_linear", node.inputs, (Tensor("float16", (dim(0, 0), dim(0, 1), WIDTH)),))


def norm(node: Node) -> Program:
    """Leaves the FP16 norm out where nobody reads it."""
    rows = (dim(0, 0), dim(0, 1))
    outputs = (Tensor("float8_e4m3fn", (*rows, WIDTH)), Tensor("float32", (*rows, 1)), Tensor("float16", (*rows, WIDTH)))
    return program("norm", node.inputs, outputs if node.read[2] else outputs[:2])
