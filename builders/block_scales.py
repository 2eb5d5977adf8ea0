"""Block scales written as a multiplication, for libraries that know DequantizeLinear with whole-tensor scales alone.

TensorRT 10.6 takes blocks for INT4 but not for FP8. The values stay the same: code * scale in FP32 either way.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def without_block_scales(model: onnx.ModelProto) -> None:
    """Replace every DequantizeLinear with blocks along the last axis, of a constant [N, K], by: codes, reshaped to blocks, times scales."""
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        block = _block_size(node)
        nodes.extend([node] if block is None else _written_out(model, node, block, list(initializers[node.input[0]].dims)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _block_size(node: onnx.NodeProto) -> int | None:
    if node.op_type != "DequantizeLinear":
        return None
    return next((attribute.i for attribute in node.attribute if attribute.name == "block_size" and attribute.i > 0), None)


def _written_out(model: onnx.ModelProto, node: onnx.NodeProto, block: int, shape: list[int]) -> list[onnx.NodeProto]:
    codes, scale = node.input[:2]
    name, (output,) = node.name, node.output
    rows, columns = shape
    assert columns % block == 0, "the export pads K to whole blocks"
    constants = {
        f"{name}/one": np.float32(1.0),
        f"{name}/blocks": np.array([rows, columns // block, block], np.int64),
        f"{name}/last": np.array([2], np.int64),
        f"{name}/shape": np.array([rows, columns], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items())
    one, blocks, last, whole = constants
    steps = [
        ("DequantizeLinear", [codes, one], "values"),
        ("Reshape", [f"{name}/values", blocks], "in_blocks"),
        ("Unsqueeze", [scale, last], "column"),
        ("Mul", [f"{name}/in_blocks", f"{name}/column"], "scaled"),
    ]
    made = [helper.make_node(kind, inputs, [f"{name}/{result}"], name=f"{name}/{result}") for kind, inputs, result in steps]
    return [*made, helper.make_node("Reshape", [f"{name}/scaled", whole], [output], name=name)]
