"""Which matrix multiplications of a graph are meant to run in FP8, and how many bytes its FP8 weights take."""

from __future__ import annotations

import math

import onnx

from .preconditions import FP8_TYPES

_LAYOUT_ONLY = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Expand")


def fp8_gemm_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the MatMul and Gemm nodes of an inlined graph whose two operands are dequantised FP8 codes.

    Operands with block scales do not count: they are dequantised before the multiplication.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    codes = {initializer.name for initializer in model.graph.initializer if initializer.data_type in FP8_TYPES}
    gemms = (node for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
    return tuple(n.name for n in gemms if all(_is_dequantised_fp8(operand, producers, codes) for operand in n.input[:2]))


def weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the graph's constants: those in FP8, the others, and what all would take with FP16 in place of FP8."""
    fp8 = sum(math.prod(i.dims) for i in model.graph.initializer if i.data_type in FP8_TYPES)
    other = sum(math.prod(i.dims) * _itemsize(i.data_type) for i in model.graph.initializer if i.data_type not in FP8_TYPES)
    return {"fp8": fp8, "other": other, "with_fp16_instead": 2 * fp8 + other}


def _is_dequantised_fp8(name: str, producers: dict[str, onnx.NodeProto], codes: set[str]) -> bool:
    node = producers.get(_through_layout(name, producers))
    if node is None or node.op_type != "DequantizeLinear" or any(a.name == "block_size" and a.i > 0 for a in node.attribute):
        return False
    coded = _through_layout(node.input[0], producers)
    source = producers.get(coded)
    return coded in codes or (source is not None and _quantises_to_fp8(source, codes))


def _through_layout(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    while (node := producers.get(name)) is not None and node.op_type in _LAYOUT_ONLY:
        name = node.input[0]
    return name


def _quantises_to_fp8(node: onnx.NodeProto, codes: set[str]) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    by_attribute = any(a.name == "output_dtype" and a.i in FP8_TYPES for a in node.attribute)
    return by_attribute or (len(node.input) > 2 and node.input[2] in codes)


def _itemsize(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
