"""A fault in the ONNX function of any operator fails the gate of that operator; without one it passes."""

from __future__ import annotations

import onnx
import pytest
import torch
from onerec_trt.operators.fp8 import E4M3
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.operator import OPSET, Call
from onerec_trt.operators.registry import OPERATORS, functions_of
from onerec_trt.validation.operator_parity import _compare, operator_gates
from onnx import TensorProto, helper
from torch import Tensor

IN_NO_SERVING_GRAPH = {"TokenScore"}  # the scoring graph has it, whose gates are those on outputs


def context_norm_inputs() -> tuple[Tensor, ...]:
    return torch.randn(2, 5, 8).half(), torch.ones(4).half(), torch.tensor([5, 3])


def call_of(name: str) -> Call:
    """A call of an operator at a small size."""
    operator = OPERATORS[name]
    inputs, attributes = context_norm_inputs(), {"epsilon": 1e-6}
    if name in FACTORIES:
        trial = next(iter(FACTORIES[name].cases.ragged()))
        inputs, attributes = tuple(trial.case.tensors("cpu")), dict(trial.case.attributes)
    return Call(operator, "somewhere", inputs, attributes, operator.reference(*inputs, **attributes))


def a_quarter_larger(body: onnx.FunctionProto, output: str, kind: int) -> None:
    """The function's own result of that name, times 1.25; E4M3 codes two steps up."""
    for node in body.node:
        for side in (node.input, node.output):
            for place, value in enumerate(side):
                if value == output:
                    side[place] = "right"
    if all(each.domain for each in body.opset_import):  # it calls other functions only
        body.opset_import.append(helper.make_opsetid("", OPSET))
    body.node.extend(
        [
            helper.make_node("Cast", ["right"], ["right32"], to=TensorProto.FLOAT),
            helper.make_node("Constant", [], ["factor"], value_float=1.25),
            helper.make_node("Mul", ["right32", "factor"], ["wrong32"]),
            helper.make_node("Cast", ["wrong32"], [output], to=kind),
        ]
    )


TYPES = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, E4M3: TensorProto.FLOAT8E4M3FN}


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - IN_NO_SERVING_GRAPH))
def test_a_result_a_quarter_too_large_fails_the_operators_gate(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        call = call_of(name)
    model = onnx.ModelProto(functions=functions_of([call.operator]))
    (right,) = operator_gates("fp8-row", [_compare(call, model)])
    assert (right.name, right.passed) == (f"operator {name}", True), right.sentence()
    number, kind = next((number, TYPES[each.dtype]) for number, each in enumerate(call.outputs) if each.dtype in TYPES)
    (body,) = [each for each in model.functions if each.name == name and each.domain == "onerec"]
    a_quarter_larger(body, body.output[number], kind)
    (wrong,) = operator_gates("fp8-row", [_compare(call, model)])
    assert not wrong.passed
    assert "somewhere" in wrong.detail
