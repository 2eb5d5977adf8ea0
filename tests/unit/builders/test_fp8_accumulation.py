"""The recipe's `fp8_accumulation` reaches every operator with FP8 products, experts too, and nothing else."""

from __future__ import annotations

import onnx
import pytest
from onerec_trt.builders.fp8_accumulation import set_fp8_accumulation
from onerec_trt.core.recipe import Fp8Accumulation
from onerec_trt.operators.registry import OPERATORS
from onnx import helper

WITH_PROMOTION = [name for name, operator in OPERATORS.items() if "promotion" in operator.function.to_function_proto().attribute]


@pytest.mark.parametrize(("accumulation", "promotion"), [("fast", 0), ("promoted", 128)])
def test_every_fp8_product_gets_it(accumulation: Fp8Accumulation, promotion: int) -> None:
    assert {"Fp8Linear", "Fp8LinearAdd", "MoeExpertsFp8Row", "MoeExpertsFp8Tensor", "MoeExpertsFp8Block"} <= set(WITH_PROMOTION)
    nodes = [helper.make_node(name, [], ["y"], name, domain="onerec", promotion=0) for name in WITH_PROMOTION]
    others = [helper.make_node("Linear", [], ["y"], domain="onerec"), helper.make_node("Other", [], ["y"], domain="other", promotion=7)]
    model = helper.make_model(helper.make_graph([*nodes, *others], "small", [], []))
    set_fp8_accumulation(model, accumulation)
    found = {node.op_type: [onnx.helper.get_attribute_value(attribute) for attribute in node.attribute] for node in model.graph.node}
    assert found == {**{name: [promotion] for name in WITH_PROMOTION}, "Linear": [], "Other": [7]}
