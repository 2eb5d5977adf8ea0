"""Gate 1 for fused operators: each node that a build with plugins fuses, against the composition of its parts in the packed model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from torch import Tensor

from ..builders.fusions.fusion import fuse
from ..builders.fusions.registry import FUSIONS
from ..operators.operator import Call
from ..operators.registry import OPERATORS


def fused_calls(exported: onnx.ModelProto, calls: Sequence[Call]) -> tuple[onnx.ModelProto, list[Call]]:
    """What the packed model would have called, were its operators fused as in a build with plugins.

    Inputs are those that the fused node reads in the fused graph, by name; outputs are what the last of its parts gave,
    and before them what the first gave, where that is kept.

    Args:
        exported: model.onnx; left as it is.
        calls: Recorded in one run of the packed model: one for every operator node.

    Returns:
        The fused graph, whose functions are those of the file and of the fused operators; and the calls.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(exported)
    made = fuse(graph, FUSIONS)
    by_label = {call.label: call for call in calls}
    nodes = {node.name: node for node in graph.graph.node}
    values = _values(exported.graph.node, by_label)
    fused = []
    for each in made:
        node, last = nodes[each.name], by_label[each.parts[-1]]
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        inputs = tuple(values[name] for name in node.input)
        kept = by_label[each.parts[0]].outputs[:1] if each.keeps else ()
        fused.append(Call(OPERATORS[node.op_type], each.name, inputs, attributes, (*kept, *last.outputs)))
    return graph, fused


def _values(nodes: Iterable[onnx.NodeProto], calls: Mapping[str, Call]) -> dict[str, Tensor]:
    """The value of every tensor that an operator node reads, by its name in the graph."""
    return {name: value for node in nodes if node.name in calls for name, value in zip(node.input, calls[node.name].inputs, strict=True)}
