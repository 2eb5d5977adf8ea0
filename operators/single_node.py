"""A model of one operator node and its functions, to run an operator alone on given inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ..core.dtypes import of_torch
from .fp8 import E4M3
from .operator import DOMAIN, Array, Attributes, Operator
from .registry import functions_of, opset_imports

IR_VERSION = 10  # the version ONNX pairs with opset 21


def single_node_model(
    operator: Operator, inputs: Sequence[Tensor], attributes: Attributes, functions: Sequence[onnx.FunctionProto] | None = None
) -> onnx.ModelProto:
    """One node of `operator`. E4M3 inputs become initializers; E4M3 outputs leave as FP32 values of the codes.

    `functions`: the file's functions to run with; those that the node does not need are left out, since ONNX Runtime prepares each one.
    Default: those of the registry.
    """
    names = [f"input_{i}" for i in range(len(inputs))]
    specs = operator.outputs(*inputs, **attributes)
    node_outputs = [f"output_{i}" for i in range(len(specs))]
    nodes = [helper.make_node(operator.name, names, node_outputs, domain=DOMAIN, **attributes)]
    outputs = []
    for name, spec in zip(node_outputs, specs, strict=True):
        if spec.dtype == E4M3:
            nodes += [
                helper.make_node("Constant", [], [f"one_{name}"], value_float=1.0),
                helper.make_node("DequantizeLinear", [name, f"one_{name}"], [f"{name}_values"]),
            ]
            outputs.append(helper.make_tensor_value_info(f"{name}_values", TensorProto.FLOAT, list(spec.shape)))
        else:
            outputs.append(helper.make_tensor_value_info(name, _onnx_type(spec.dtype), list(spec.shape)))
    graph_inputs = [
        helper.make_tensor_value_info(n, _onnx_type(x.dtype), list(x.shape)) for n, x in zip(names, inputs, strict=True) if x.dtype != E4M3
    ]
    graph = helper.make_graph(nodes, operator.name, graph_inputs, outputs)
    needed = functions_of([operator]) if functions is None else _needed(operator.name, functions)
    model = helper.make_model(graph, opset_imports=opset_imports(), functions=needed, ir_version=IR_VERSION)
    for name, x in zip(names, inputs, strict=True):
        if x.dtype == E4M3:  # filled in last: each of the helpers above copies what it is given, and experts have 300 MB
            fill_e4m3(model.graph.initializer.add(), name, x)
    return model


def _needed(operator: str, functions: Sequence[onnx.FunctionProto]) -> list[onnx.FunctionProto]:
    """The function of an operator and all that it calls, in their order."""
    known = {(function.domain, function.name): function for function in functions}
    needed, waiting = set(), [(DOMAIN, operator)]
    while waiting:
        key = waiting.pop()
        if key in known and key not in needed:
            needed.add(key)
            waiting += [(node.domain, node.op_type) for node in known[key].node]
    return [function for key, function in known.items() if key in needed]


def feed(inputs: Sequence[Tensor]) -> dict[str, Array]:
    """The run-time inputs of a `single_node_model`."""
    return {f"input_{i}": x.contiguous().numpy() for i, x in enumerate(inputs) if x.dtype != E4M3}


def as_arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """NumPy arrays of tensors, E4M3 codes as the FP32 values they stand for."""
    return [np.asarray((t.float() if t.dtype == E4M3 else t).numpy()) for t in tensors]


def _onnx_type(dtype: torch.dtype) -> int:
    number: int = TensorProto.DataType.Value(of_torch(dtype).onnx)
    return number


def fill_e4m3(tensor: onnx.TensorProto, name: str, codes: Tensor) -> None:
    """Make an initializer of E4M3 codes, in any layout in memory."""
    tensor.name, tensor.data_type = name, TensorProto.FLOAT8E4M3FN
    tensor.dims.extend(codes.shape)
    tensor.raw_data = codes.contiguous().view(torch.uint8).numpy().tobytes()
