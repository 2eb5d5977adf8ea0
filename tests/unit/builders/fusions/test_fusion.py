"""Chains become one node where they match as a whole; where anything differs the graph stays as it is, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onerec_trt.builders.fusions.beam_self_attention_quant import (
    beam_self_attention_1_quant_row_fusion,
    beam_self_attention_1_quant_tensor_fusion,
)
from onerec_trt.builders.fusions.fusion import FusedNode, Fusion, Part, fuse
from onerec_trt.operators.beam_self_attention_quant import beam_self_attention_1_quant_row
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onnx import TensorProto, helper, numpy_helper

ROWS, HEADS, D_HEAD, BATCH = 3, 2, 32, 2
WIDTH = HEADS * D_HEAD
PLACE = "step1.blocks.0.self"
QKV, BOS = "qkv", "bos"
Change = Callable[[onnx.ModelProto], None]


def graph_of(quantizer: str = "QuantRow", scale: Sequence[float] = (0.01,)) -> onnx.ModelProto:
    """Projections -> attention -> quantize -> values as FP32, as the export writes them."""
    static = quantizer == "QuantTensor"
    codes = ["codes"] if static else ["codes", "row_scale"]
    nodes = [
        helper.make_node("BeamSelfAttention1", [QKV, BOS], ["attended"], f"{PLACE}.attention", domain="onerec", rows=ROWS, heads=HEADS),
        helper.make_node(quantizer, ["attended", "scale"] if static else ["attended"], codes, f"{PLACE}.quantize", domain="onerec"),
        helper.make_node("DequantizeLinear", ["codes", "one"], ["values"], "values"),
    ]
    info = helper.make_tensor_value_info
    inputs = [info(QKV, TensorProto.FLOAT16, ["N", 3 * WIDTH]), info(BOS, TensorProto.FLOAT16, ["batch", 3 * WIDTH])]
    outputs = [info("values", TensorProto.FLOAT, ["N", WIDTH])]
    between = [info("attended", TensorProto.FLOAT16, ["N", WIDTH]), info("codes", TensorProto.FLOAT8E4M3FN, ["N", WIDTH])]
    if not static:
        outputs.append(info("row_scale", TensorProto.FLOAT, ["N", 1]))
    initializers = [numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.array(scale, np.float32), "scale")]
    functions = functions_of([OPERATORS["BeamSelfAttention1"], OPERATORS[quantizer]])
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers, value_info=between)
    return helper.make_model(graph, opset_imports=opset_imports(), functions=functions, ir_version=10)


@pytest.mark.parametrize(
    ("quantizer", "fusion"),
    [("QuantRow", beam_self_attention_1_quant_row_fusion), ("QuantTensor", beam_self_attention_1_quant_tensor_fusion)],
)
def test_a_chain_becomes_one_node_in_its_place(quantizer: str, fusion: Fusion) -> None:
    model = graph_of(quantizer)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    made = fuse(model, [fusion])
    assert made == (FusedNode(fusion.name, f"{PLACE}.attention", (f"{PLACE}.attention", f"{PLACE}.quantize")),)
    node, _ = model.graph.node
    assert (node.op_type, node.domain, node.name) == (f"BeamSelfAttention1{quantizer}", "onerec", f"{PLACE}.attention")
    assert list(node.input) == ([QKV, BOS, "scale"] if quantizer == "QuantTensor" else [QKV, BOS])
    assert list(node.output) == list(before.graph.node[1].output)
    assert {attribute.name: attribute.i for attribute in node.attribute} == {"rows": ROWS, "heads": HEADS}
    assert "attended" not in {value.name for value in model.graph.value_info}
    assert [function for function in before.functions if function not in model.functions] == []


@pytest.mark.parametrize(
    ("quantizer", "fusion"),
    [("QuantRow", beam_self_attention_1_quant_row_fusion), ("QuantTensor", beam_self_attention_1_quant_tensor_fusion)],
)
def test_the_fused_graph_gives_the_same_bits_in_onnx_runtime(quantizer: str, fusion: Fusion) -> None:
    plain, fused = graph_of(quantizer), graph_of(quantizer)
    assert fuse(fused, [fusion])
    onnx.checker.check_model(fused)
    draw = np.random.default_rng(0)
    feed = {QKV: draw.normal(size=(BATCH * ROWS, 3 * WIDTH)), BOS: draw.normal(size=(BATCH, 3 * WIDTH))}
    outputs = [OnnxRuntimeRunner(m, threads=1)({n: x.astype(np.float16) for n, x in feed.items()}) for m in (plain, fused)]
    assert outputs[0]["values"].any()
    for name, array in outputs[0].items():
        assert np.array_equal(array, outputs[1][name])


def test_the_files_own_functions_stay() -> None:
    model = graph_of()
    (attention,) = [function for function in model.functions if function.name == "BeamSelfAttention1"]
    attention.doc_string = "as the file has it"
    fuse(model, [beam_self_attention_1_quant_row_fusion])
    functions = [function for function in model.functions if function.name == "BeamSelfAttention1"]
    assert [function.doc_string for function in functions] == ["as the file has it"]


def second_reader(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["attended"], ["copy"], "copy"))


def read_twice_by_one(model: onnx.ModelProto) -> None:
    model.graph.node[1].input.append("attended")


def graph_output_between(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("attended", TensorProto.FLOAT16, ["N", WIDTH]))


def read_in_a_body(model: onnx.ModelProto) -> None:
    inner = helper.make_node("Identity", ["attended"], ["inner"])
    body = helper.make_graph([inner], "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT16, None)])
    model.graph.node.append(helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=body, else_branch=body))


def operator_between(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "moved"
    model.graph.node.insert(1, helper.make_node("Reshape", ["attended", "shape"], ["moved"], "reshape"))


def another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "other"


def read_at_another_place(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[:] = ["something", "attended"]


def another_quantizer(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "QuantTensor"


def contradicting_attributes(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("heads", 2 * HEADS))


@pytest.mark.parametrize(
    "change",
    [
        second_reader,
        read_twice_by_one,
        graph_output_between,
        read_in_a_body,
        operator_between,
        another_domain,
        read_at_another_place,
        another_quantizer,
        contradicting_attributes,
    ],
)
def test_a_near_miss_leaves_the_graph_as_it_is(change: Change) -> None:
    model = graph_of()
    change(model)
    before = model.SerializeToString()
    assert fuse(model, [beam_self_attention_1_quant_row_fusion]) == ()
    assert model.SerializeToString() == before


def test_a_scale_per_channel_is_not_fused() -> None:
    model = graph_of("QuantTensor", scale=[0.01] * WIDTH)
    before = model.SerializeToString()
    assert fuse(model, [beam_self_attention_1_quant_tensor_fusion]) == ()
    assert model.SerializeToString() == before


def test_a_scale_of_unknown_shape_is_not_fused() -> None:
    model = graph_of("QuantTensor")
    model.graph.node[1].input[1] = "computed"
    assert fuse(model, [beam_self_attention_1_quant_tensor_fusion]) == ()


def test_one_match_of_two_is_fused_and_the_other_stays() -> None:
    model = graph_of()
    first, second = graph_of(), onnx.ModelProto()
    second.CopyFrom(first)
    for node in second.graph.node[:2]:
        node.name = node.name.replace("step1", "step2")
        for names in (node.input, node.output):
            names[:] = [name if name in (QKV, BOS) else f"{name}.2" for name in names]
    model.graph.node.extend(second.graph.node[:2])
    model.graph.node.append(helper.make_node("Identity", ["attended.2"], ["copy"], "copy"))
    (made,) = fuse(model, [beam_self_attention_1_quant_row_fusion])
    assert made.name == f"{PLACE}.attention"
    assert [node.op_type for node in model.graph.node] == [
        "BeamSelfAttention1QuantRow",
        "DequantizeLinear",
        "BeamSelfAttention1",
        "QuantRow",
        "Identity",
    ]


def test_nodes_are_fused_once_where_matches_overlap() -> None:
    model = graph_of()
    model.graph.node[1].CopyFrom(helper.make_node("Half", ["attended"], ["codes"], "a", domain="onerec"))
    model.graph.node.insert(2, helper.make_node("Half", ["codes"], ["b.0"], "b", domain="onerec"))
    model.graph.node.insert(3, helper.make_node("Half", ["b.0"], ["c.0"], "c", domain="onerec"))
    del model.graph.node[4]
    pair = Fusion("pair", (Part("Half"), Part("Half")), beam_self_attention_1_quant_row)
    (made,) = fuse(model, [pair])
    assert made.parts == ("a", "b")
    assert [node.name for node in model.graph.node] == [f"{PLACE}.attention", "a", "c"]


def test_a_part_whose_other_output_is_read_stays() -> None:
    model = graph_of()
    model.graph.node[0].output.append("weights")
    assert fuse(graph := onnx.ModelProto.FromString(model.SerializeToString()), [beam_self_attention_1_quant_row_fusion])
    assert len(graph.graph.node) == 2
    model.graph.node.append(helper.make_node("Identity", ["weights"], ["copy"], "copy"))
    assert fuse(model, [beam_self_attention_1_quant_row_fusion]) == ()
