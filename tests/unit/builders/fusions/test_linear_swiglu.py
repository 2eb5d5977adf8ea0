"""Which products take SwiGLU with them: FP16 ones, and FP8 ones whose activations have one scale before and behind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onerec_trt.builders.fusions.fusion import fuse
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onnx import TensorProto, helper, numpy_helper

K, HIDDEN, ROWS = 32, 16, 5
PLACE = "step1.blocks.0.ffn"
RANDOM = np.random.default_rng(3)


def fp16_graph(activation: str) -> onnx.ModelProto:
    """x -> product of gate and up -> activation, as the export writes them."""
    outputs = ["hidden"] if activation == "SwiGlu" else ["codes", "row_scale"]
    nodes = [
        helper.make_node("Linear", ["x", "weight"], ["gate_up"], f"{PLACE}.gate_up", domain="onerec"),
        helper.make_node(activation, ["gate_up"], outputs, f"{PLACE}.activation", domain="onerec"),
    ]
    weight = (RANDOM.standard_normal((2 * HIDDEN, K)) / 6).astype(np.float16)
    result = ("hidden", TensorProto.FLOAT16) if activation == "SwiGlu" else ("row_scale", TensorProto.FLOAT)
    return model_of(nodes, result, [numpy_helper.from_array(weight, "weight")], ["Linear", activation])


def fp8_graph(activation: str, scales: int, hidden_scales: int = 1, reader: bool = False) -> onnx.ModelProto:
    """x -> codes -> product -> activation -> values; as many scales of the input, one or one per row, and of the result."""
    quantizer, ends = ("QuantTensor", ["codes"]) if scales == 1 else ("QuantRow", ["codes", "scale"])
    given = ["gate_up", "hidden_scale"] if activation == "SwiGluQuantTensor" else ["gate_up"]
    made = ["hidden"] if activation == "SwiGluQuantTensor" else ["hidden", "row_scale"]
    product = ["codes", "scale", "weight", "weight_scale"]
    nodes = [
        helper.make_node(quantizer, ["x", "scale"] if scales == 1 else ["x"], ends, "quantize", domain="onerec"),
        helper.make_node("Fp8Linear", product, ["gate_up"], f"{PLACE}.gate_up", domain="onerec", promotion=0),
        helper.make_node(activation, given, made, f"{PLACE}.activation", domain="onerec"),
        helper.make_node("DequantizeLinear", ["hidden", "one"], ["values"], "values"),
    ]
    weight = numpy_helper.from_array(RANDOM.integers(0, 0x70, (2 * HIDDEN, K), np.uint8), "weight")
    weight.data_type = TensorProto.FLOAT8E4M3FN
    initializers = [
        weight,
        numpy_helper.from_array(np.full(2 * HIDDEN, 1e-3, np.float32), "weight_scale"),
        numpy_helper.from_array(np.full(hidden_scales, 0.01, np.float32), "hidden_scale"),
        numpy_helper.from_array(np.float32(1), "one"),
        *([numpy_helper.from_array(np.array([0.01], np.float32), "scale")] if scales == 1 else []),
    ]
    model = model_of(nodes, ("values", TensorProto.FLOAT), initializers, [quantizer, "Fp8Linear", activation])
    if scales != 1:
        model.graph.value_info.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["N", 1]))
    if reader:
        model.graph.output.append(helper.make_tensor_value_info("gate_up", TensorProto.FLOAT16, ["N", 2 * HIDDEN]))
    return model


def model_of(nodes, result, initializers, operators) -> onnx.ModelProto:
    name, dtype = result
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", K])
    graph = helper.make_graph(nodes, "small", [x], [helper.make_tensor_value_info(name, dtype, ["N", None])], initializers)
    functions = functions_of([OPERATORS[operator] for operator in operators])
    return helper.make_model(graph, opset_imports=opset_imports(), functions=functions, ir_version=10)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(0).standard_normal((ROWS, K)).astype(np.float16)
    return list(OnnxRuntimeRunner(model, threads=1)({"x": x}).values())


@pytest.mark.parametrize(
    ("make", "operator"),
    [
        (lambda: fp16_graph("SwiGlu"), "LinearSwiGlu"),
        (lambda: fp16_graph("SwiGluQuantRow"), None),
        (lambda: fp8_graph("SwiGluQuantTensor", 1), "Fp8LinearSwiGluQuantTensor"),
        (lambda: fp8_graph("SwiGluQuantTensor", ROWS), None),
        (lambda: fp8_graph("SwiGluQuantTensor", 1, HIDDEN), None),
        (lambda: fp8_graph("SwiGluQuantRow", 1), None),
        (lambda: fp8_graph("SwiGluQuantTensor", 1, reader=True), None),
    ],
    ids=[
        "fp16",
        "fp16, then codes per row",
        "one scale",
        "a scale per row",
        "a scale per channel behind",
        "codes per row",
        "read elsewhere",
    ],
)
def test_a_product_takes_swiglu_with_it_where_every_scale_is_one(make, operator):
    model = make()
    before = run(model)
    made = fuse(model, FUSIONS)
    assert [each.name for each in made] == ([] if operator is None else [f"{PLACE}.gate_up"])
    assert [each.parts for each in made] == ([] if operator is None else [(f"{PLACE}.gate_up", f"{PLACE}.activation")])
    assert (operator in {node.op_type for node in model.graph.node}) == (operator is not None)
    for fused, parts in zip(run(model), before, strict=True):
        assert np.array_equal(fused, parts)
        assert fused.any()
