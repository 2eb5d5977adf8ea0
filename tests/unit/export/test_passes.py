"""Rewrite passes: names follow the trace, equal weights stay two weights, references are attached once."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from onerec_trt.export.passes import attach_functions, name_operator_nodes
from onerec_trt.operators.registry import OPERATORS, functions_of


def graph_of(*op_types):
    """A chain of onerec nodes."""
    value = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT16))
    nodes, current = [], value
    for op_type in op_types:
        nodes.append(ir.node(op_type, [current], domain="onerec"))
        current = nodes[-1].outputs[0]
        current.name = f"v{len(nodes)}"
    return ir.Model(ir.Graph([value], [current], nodes=nodes, opset_imports={"": 21, "onerec": 1}), ir_version=10)


def test_nodes_and_their_outputs_take_the_labels_of_the_trace():
    model = graph_of("RmsNorm", "SwiGlu")
    name_operator_nodes(model, [("RmsNorm", "step0.norm"), ("SwiGlu", "step0.activation")])
    first, second = model.graph
    assert (first.name, first.outputs[0].name) == ("step0.norm", "step0.norm.0")
    assert (second.name, second.outputs[0].name) == ("step0.activation", "v2"), "graph outputs keep their names"


@pytest.mark.parametrize("calls", [[("RmsNorm", "a")], [("SwiGlu", "a"), ("RmsNorm", "b")]])
def test_trace_that_does_not_match_the_graph_is_caught(calls):
    with pytest.raises(AssertionError, match="removed or moved"):
        name_operator_nodes(graph_of("RmsNorm", "SwiGlu"), calls)


def test_meanings_of_what_is_used_are_attached_and_no_others():
    model = graph_of("RmsNorm", "SwiGlu", "SwiGlu")
    attach_functions(model)
    expected = {(proto.domain, proto.name) for proto in functions_of([OPERATORS["RmsNorm"], OPERATORS["SwiGlu"]])}
    assert {(domain, name) for domain, name, _ in model.functions} == expected
    assert model.opset_imports["onerec.detail"] == 1


@pytest.mark.parametrize("precision", ["fp16", "fp8-row"])
def test_equal_weights_stay_two_weights(exported, precision):
    """Merged, a weight's name would depend on its content, and no later stage could find it."""
    export = exported(precision)
    names = [f"blocks.{layer}.self_attention.o.weight" for layer in (0, 1)]
    assert torch.equal(*(export.packed.tensor(name).float() for name in names))
    assert {f"decoder.blocks.{layer}.self_o.weight" for layer in (0, 1)} <= {i.name for i in export.proto().graph.initializer}
