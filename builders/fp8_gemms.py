"""Which matrix multiplications of a graph are meant to run in FP8, and how many bytes its FP8 weights take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from .kernel_programs import KernelNode
from .preconditions import FP8_TYPES

_MULTIPLICATIONS = ("MatMul", "Gemm")
_LAYOUT_ONLY = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Expand")
_TRANSPARENT = (*_LAYOUT_ONLY, "Cast")  # casts before a product ask for FP32 accumulation, its operands stay FP8


@dataclass(frozen=True)
class QuantizedGemms:
    """Names of the products of an inlined graph that have an FP8 operand: MatMul and Gemm nodes, and nodes that kernels compute.

    `in_fp8`: both operands are FP8 codes, so that the product can run in FP8.
    `dequantized`: only one is, or its scales are per block; the product runs in the wider type.
    """

    in_fp8: tuple[str, ...]
    dequantized: tuple[str, ...]


def quantized_gemms(model: onnx.ModelProto, kernel_nodes: Sequence[KernelNode] = ()) -> QuantizedGemms:
    """Find the matrix multiplications with FP8 operands in an inlined graph.

    Args:
        model: The graph.
        kernel_nodes: Its nodes that kernels compute. Default: none.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    codes = {initializer.name for initializer in model.graph.initializer if initializer.data_type in FP8_TYPES}
    codes |= {output for node in kernel_nodes for output in node.fp8_outputs}
    in_fp8, dequantized = [node.name for node in kernel_nodes if node.in_fp8], []
    for node in model.graph.node:
        if node.op_type not in _MULTIPLICATIONS:
            continue
        sources = [_fp8_source(operand, producers, codes) for operand in node.input[:2]]
        if all(source is not None and not _has_blocks(source) for source in sources):
            in_fp8.append(node.name)
        elif any(source is not None for source in sources):
            dequantized.append(node.name)
    return QuantizedGemms(tuple(in_fp8), tuple(dequantized))


def multiplications(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the MatMul and Gemm nodes of an inlined graph."""
    return frozenset(node.name for node in model.graph.node if node.op_type in _MULTIPLICATIONS)


def weight_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the graph's constants: those in FP8, the others, and what all would take with FP16 in place of FP8."""
    fp8 = sum(math.prod(i.dims) for i in model.graph.initializer if i.data_type in FP8_TYPES)
    other = sum(math.prod(i.dims) * _itemsize(i.data_type) for i in model.graph.initializer if i.data_type not in FP8_TYPES)
    return {"fp8": fp8, "other": other, "with_fp16_instead": 2 * fp8 + other}


def _fp8_source(name: str, producers: dict[str, onnx.NodeProto], codes: set[str]) -> onnx.NodeProto | None:
    """The DequantizeLinear of FP8 codes that an operand comes from, with nothing but changes of layout and type in between."""
    node = producers.get(_through(_TRANSPARENT, name, producers))
    if node is None or node.op_type != "DequantizeLinear":
        return None
    coded = _through(_LAYOUT_ONLY, node.input[0], producers)
    source = producers.get(coded)
    return node if coded in codes or (source is not None and _quantizes_to_fp8(source, codes)) else None


def _has_blocks(dequantize: onnx.NodeProto) -> bool:
    return any(a.name == "block_size" and a.i > 0 for a in dequantize.attribute)


def _through(kinds: tuple[str, ...], name: str, producers: dict[str, onnx.NodeProto]) -> str:
    while (node := producers.get(name)) is not None and node.op_type in kinds:
        name = node.input[0]
    return name


def _quantizes_to_fp8(node: onnx.NodeProto, codes: set[str]) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    by_attribute = any(a.name == "output_dtype" and a.i in FP8_TYPES for a in node.attribute)
    return by_attribute or (len(node.input) > 2 and node.input[2] in codes)


def _itemsize(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
