"""Which multiplications are meant for FP8 is told from the graph; block scales and half-quantized ones are not."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onerec_trt.builders.fp8_gemms import QuantizedGemms, quantized_gemms, weight_bytes
from onnx import helper

Make = Callable[..., onnx.ModelProto]
IN_FP8, DEQUANTIZED = QuantizedGemms(("layer",), ()), QuantizedGemms((), ("layer",))


def _node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def test_a_layer_with_both_operands_in_fp8_counts(make_model: Make) -> None:
    assert quantized_gemms(make_model()) == IN_FP8
    assert quantized_gemms(make_model(fp8=False)) == QuantizedGemms((), ())


def test_layout_changes_in_between_do_not_hide_it(make_model: Make) -> None:
    model = make_model()
    _node(model, "product").input[1] = "turned"
    model.graph.node.append(helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]))
    assert quantized_gemms(model) == IN_FP8


def test_codes_without_zero_point_count(make_model: Make) -> None:
    model = make_model()
    quantize = _node(model, "codes")
    del quantize.input[2]
    assert quantized_gemms(model) == DEQUANTIZED  # uint8 by default
    quantize.attribute.append(helper.make_attribute("output_dtype", onnx.TensorProto.FLOAT8E4M3FN))
    assert quantized_gemms(model) == IN_FP8


@pytest.mark.parametrize("change", ["block scales", "half-precision activation", "scale in between"])
def test_what_cannot_run_in_fp8_counts_as_dequantized(make_model: Make, change: str) -> None:
    model = make_model()
    if change == "block scales":
        _node(model, "w").attribute.append(helper.make_attribute("block_size", 32))
    elif change == "half-precision activation":
        _node(model, "product").input[0] = "features"
    else:
        _node(model, "product").input[1] = "scaled"
        model.graph.node.append(helper.make_node("Mul", ["w", "scale"], ["scaled"]))
    assert quantized_gemms(model) == DEQUANTIZED


def test_weight_bytes(make_model: Make) -> None:
    assert weight_bytes(make_model()) == {"fp8": 64 * 64 + 1, "other": 2 + 2 * 64, "with_fp16_instead": 2 * (64 * 64 + 1) + 130}
