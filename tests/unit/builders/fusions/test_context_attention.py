"""Which of the fusions of context attention applies: keys that are the values or not, a result that is quantized or not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onerec_trt.builders.fusions.fusion import fuse
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onnx import TensorProto, helper, numpy_helper

ROWS, GROUPS, D_HEAD, TOKENS = 3, 2, 32, 5
PLACE = "step1.blocks.0.cross"


def graph_of(value: str, quantizer: str | None) -> onnx.ModelProto:
    """Query -> attention -> quantization, if any -> values, as the export writes them."""
    inputs = ["query", "key", value, "lengths"]
    nodes = [helper.make_node("ContextAttention", inputs, ["attended"], f"{PLACE}.attention", domain="onerec", rows=ROWS)]
    if quantizer is not None:
        outputs = ["codes"] if quantizer == "QuantTensor" else ["codes", "row_scale"]
        given = ["attended", "scale"] if quantizer == "QuantTensor" else ["attended"]
        nodes.append(helper.make_node(quantizer, given, outputs, f"{PLACE}.quantize", domain="onerec"))
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "one"], ["values"], "values"))
    info, width = helper.make_tensor_value_info, GROUPS * D_HEAD
    context = ["batch", GROUPS, "tokens", D_HEAD]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            info("query", TensorProto.FLOAT16, ["N", width]),
            *(info(name, TensorProto.FLOAT16, context) for name in ("key", "value")),
            info("lengths", TensorProto.INT64, ["batch"]),
        ],
        [info("attended", TensorProto.FLOAT16, ["N", width]) if quantizer is None else info("values", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.array([0.01], np.float32), "scale")],
    )
    operators = [OPERATORS["ContextAttention"], *([] if quantizer is None else [OPERATORS[quantizer]])]
    return helper.make_model(graph, opset_imports=opset_imports(), functions=functions_of(operators), ir_version=10)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    context = random.standard_normal((2, GROUPS, TOKENS, D_HEAD)).astype(np.float16)
    feeds = {
        "query": random.standard_normal((2 * ROWS, GROUPS * D_HEAD)).astype(np.float16),
        "key": context,
        "value": context[:, ::-1].copy(),
        "lengths": np.array([TOKENS, TOKENS]),
    }
    return list(OnnxRuntimeRunner(model, threads=1)(feeds).values())


@pytest.mark.parametrize(
    ("value", "quantizer", "operator"),
    [
        ("key", None, "SharedContextAttention"),
        ("key", "QuantTensor", "SharedContextAttentionQuantTensor"),
        ("key", "QuantRow", "SharedContextAttention"),
        ("value", "QuantTensor", "ContextAttentionQuantTensor"),
        ("value", None, None),
        ("value", "QuantRow", None),
    ],
)
def test_the_widest_fusion_applies_and_computes_the_same(value: str, quantizer: str | None, operator: str | None) -> None:
    model = graph_of(value, quantizer)
    before = run(model)
    made = fuse(model, FUSIONS)
    assert [each.name for each in made] == ([] if operator is None else [f"{PLACE}.attention"])
    node = model.graph.node[0]
    assert node.op_type == (operator or "ContextAttention")
    assert list(node.input).count("key") == (1 if operator else [value, "key"].count("key"))
    for fused, parts in zip(run(model), before, strict=True):
        assert np.array_equal(fused, parts)
