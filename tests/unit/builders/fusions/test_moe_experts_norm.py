"""Experts take the norm behind them along, and still give their sum to those that read it later; where that cannot be they stay apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onerec_trt.builders.fusions.fusion import fuse
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.core.dtypes import of_torch
from onerec_trt.operators.fp8 import E4M3
from onerec_trt.operators.kernels.moe_norm_cases import moe_experts_norm_case
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onerec_trt.operators.single_node import feed, fill_e4m3
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onnx import TensorProto, helper
from torch import Tensor

PLACE, BEHIND = "step0.blocks.1.ffn.experts", "step0.blocks.2.cross.norm"
ROWS, WIDTH = 5, 64
KEPT = "total"  # what the experts leave
ROW = "MoeExpertsFp8RowRmsNormQuantRow"
Change = Callable[[onnx.ModelProto], None]
by_name = pytest.mark.parametrize("name", PAIRS)


def tensors_of(name: str) -> tuple[list[Tensor], dict[str, int | float]]:
    torch.manual_seed(0)
    case = moe_experts_norm_case(name, ROWS, WIDTH, 128, 3, 2)
    return case.tensors("cpu"), case.attributes


def graph_of(name: str) -> onnx.ModelProto:
    """Experts -> norm -> values, and the residual of a later block, which reads the sum, too."""
    pair, (inputs, attributes) = PAIRS[name], tensors_of(name)
    names = [f"input_{number}" for number in range(len(inputs))]
    normed = [f"norm_{number}" for number in range(len(pair.norm.function.to_function_proto().output))]
    of_experts = {key: value for key, value in attributes.items() if key != "epsilon"}
    nodes = [
        helper.make_node(pair.experts.name, names[: pair.inputs], [KEPT], PLACE, domain="onerec", **of_experts),
        helper.make_node(pair.norm.name, [KEPT, *names[pair.inputs :]], normed, BEHIND, domain="onerec", epsilon=attributes["epsilon"]),
        helper.make_node("Cast", [normed[0]], ["values"], "values", to=TensorProto.FLOAT),
        helper.make_node("Add", [KEPT, KEPT], ["later"], "later"),
    ]
    given = [
        helper.make_tensor_value_info(each, TensorProto.DataType.Value(of_torch(tensor.dtype).onnx), list(tensor.shape))
        for each, tensor in zip(names, inputs, strict=True)
        if tensor.dtype != E4M3
    ]
    outputs = [helper.make_tensor_value_info("values", TensorProto.FLOAT, [ROWS, WIDTH])]
    outputs.append(helper.make_tensor_value_info("later", TensorProto.FLOAT16, [ROWS, WIDTH]))
    between = [helper.make_tensor_value_info(KEPT, TensorProto.FLOAT16, [ROWS, WIDTH])]
    graph = helper.make_graph(nodes, "small", given, outputs, value_info=between)
    for each, tensor in zip(names, inputs, strict=True):
        if tensor.dtype == E4M3:
            fill_e4m3(graph.initializer.add(), each, tensor)
    functions = functions_of([pair.experts, pair.norm])
    return helper.make_model(graph, opset_imports=opset_imports(), functions=functions, ir_version=10)


@by_name
def test_a_chain_becomes_one_node_that_still_gives_the_sum(name: str) -> None:
    model = graph_of(name)
    experts, norm = onnx.ModelProto.FromString(model.SerializeToString()).graph.node[:2]
    (made,) = fuse(model, FUSIONS)
    assert (made.name, made.parts, made.keeps) == (PLACE, (PLACE, BEHIND), True)
    node = model.graph.node[0]
    assert [each.op_type for each in model.graph.node] == [name, "Cast", "Add"]
    assert (node.name, node.domain) == (PLACE, "onerec")
    assert list(node.input) == [*experts.input, *norm.input[1:]]
    assert list(node.output) == [KEPT, *norm.output]
    assert {each.name for each in node.attribute} == {each.name for each in (*experts.attribute, *norm.attribute)}
    assert KEPT in {value.name for value in model.graph.value_info}, "its type is known as before"


@by_name
def test_the_fused_graph_gives_the_same_bits_in_onnx_runtime(name: str) -> None:
    plain, fused = graph_of(name), graph_of(name)
    assert fuse(fused, FUSIONS)
    onnx.checker.check_model(fused)
    inputs = feed(tensors_of(name)[0])
    before, behind = (OnnxRuntimeRunner(model, threads=1)(inputs) for model in (plain, fused))
    assert before["values"].any()
    for output, array in before.items():
        assert np.array_equal(array, behind[output])


def read_by_nobody_else(model: onnx.ModelProto) -> None:
    """As behind the last block."""
    del model.graph.node[3], model.graph.output[1]


def read_before(model: onnx.ModelProto) -> None:
    model.graph.node.insert(1, helper.make_node("Identity", [KEPT], ["copy"], "copy"))


def read_by_the_graph(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(KEPT, TensorProto.FLOAT16, [ROWS, WIDTH]))


def read_in_a_body(model: onnx.ModelProto) -> None:
    inner = helper.make_node("Identity", [KEPT], ["inner"])
    body = helper.make_graph([inner], "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT16, None)])
    model.graph.node.append(helper.make_node("If", ["condition"], ["chosen"], "if", then_branch=body, else_branch=body))


def two_norms(model: onnx.ModelProto) -> None:
    """Which of them would be the next one cannot be told."""
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[1])
    second.output[:] = [f"second.{output}" for output in second.output]


def read_twice_by_the_norm(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[1] = KEPT


def read_at_another_place(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[:] = ["something", KEPT]


def a_norm_of_the_residual(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[0].input[-1]


def operator_between(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "moved"
    model.graph.node.insert(1, helper.make_node("Identity", [KEPT], ["moved"], "moved"))


def another_norm(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "RmsNormQuantBlock"


def a_norm_without_codes(model: onnx.ModelProto) -> None:
    """As before the head in FP8."""
    model.graph.node[1].op_type = "RmsNorm"
    del model.graph.node[1].output[1:]


def other_experts(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "MoeExperts"


@pytest.mark.parametrize(
    "change",
    [
        read_by_nobody_else,
        read_before,
        read_by_the_graph,
        read_in_a_body,
        two_norms,
        read_twice_by_the_norm,
        read_at_another_place,
        a_norm_of_the_residual,
        operator_between,
        another_norm,
        a_norm_without_codes,
        other_experts,
    ],
)
def test_a_near_miss_leaves_the_graph_as_it_is(change: Change) -> None:
    model = graph_of(ROW)
    change(model)
    before = model.SerializeToString()
    assert fuse(model, FUSIONS) == ()
    assert model.SerializeToString() == before


def test_a_scale_per_channel_is_not_fused() -> None:
    model = graph_of("MoeExpertsFp8TensorRmsNormQuantTensor")
    (scale,) = [each for each in model.graph.input if each.name == model.graph.node[1].input[2]]
    scale.type.tensor_type.shape.dim[0].dim_value = WIDTH
    assert fuse(model, FUSIONS) == ()


def test_every_function_of_the_fused_operators_is_in_the_file() -> None:
    model = graph_of(ROW)
    fuse(model, FUSIONS)
    known = {(function.domain, function.name) for function in model.functions}
    assert {(proto.domain, proto.name) for proto in functions_of([OPERATORS[ROW]])} <= known
