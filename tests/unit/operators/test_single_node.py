"""The model of one node is a valid ONNX file; NumPy sees codes as values."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onerec_trt.operators import fp8
from onerec_trt.operators.registry import OPERATORS, functions_of
from onerec_trt.operators.single_node import as_arrays, feed, fill_e4m3, single_node_model


def codes_and_weight():
    codes, scale = fp8.quantize_rows(torch.randn(3, 32))
    weight, weight_scale = fp8.quantize_rows(torch.randn(5, 32))
    return codes, scale, weight, weight_scale[:, 0]


def _initializer(codes):
    fill_e4m3(tensor := onnx.TensorProto(), "x", codes)
    return tensor


def test_model_is_valid_and_feeds_everything_but_codes():
    inputs = codes_and_weight()
    model = single_node_model(OPERATORS["Fp8Linear"], inputs, {"promotion": 0})
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == list(feed(inputs)) == ["input_1", "input_3"]
    assert {i.name: i.data_type for i in model.graph.initializer} == dict.fromkeys(("input_0", "input_2"), onnx.TensorProto.FLOAT8E4M3FN)


def test_initializer_holds_the_bytes_of_the_codes():
    codes = codes_and_weight()[0]
    assert _initializer(codes).raw_data == codes.view(torch.uint8).numpy().tobytes()


def test_strided_codes_are_written_in_order():
    codes = codes_and_weight()[0].T
    assert _initializer(codes).raw_data == codes.contiguous().view(torch.uint8).numpy().tobytes()


def test_codes_as_arrays_are_their_values():
    codes, scale, *_ = codes_and_weight()
    values, same_scale = as_arrays([codes, scale])
    assert np.array_equal(values, codes.float().numpy())
    assert np.array_equal(same_scale, scale.numpy())


def test_operator_runs_on_functions_handed_in():
    """Without its functions the node has no reference."""
    inputs = codes_and_weight()
    assert not single_node_model(OPERATORS["Fp8Linear"], inputs, {"promotion": 0}, functions=[]).functions


def test_functions_that_the_node_does_not_need_are_left_out():
    everything = functions_of(OPERATORS.values())
    model = single_node_model(OPERATORS["Fp8Linear"], codes_and_weight(), {"promotion": 0}, functions=everything)
    assert [function.name for function in model.functions] == [function.name for function in functions_of([OPERATORS["Fp8Linear"]])]
    assert 1 < len(model.functions) < len(everything)
