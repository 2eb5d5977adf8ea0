"""What an exported graph says, as text: everything but the content of its weights.

Values go by their place in the graph, not by their name, which depends on how the exporter counts; weights go by their name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from ..operators.operator import DOMAIN

_STEP_OWN = ("beam", "score")  # what closes a step differs between the graphs: beams are found in one, given in the other


class Structure(NamedTuple):
    """One line for each thing in a graph, and what each operator of the three steps is and reads, by its label."""

    lines: list[str]
    bodies: dict[str, str]


def structure_of(model: ir.Model, weights: set[str]) -> Structure:
    """Describe a graph; `weights` are the names of its weights, whatever is no weight counts with its content."""
    return Structure(_lines(model, weights), _step_bodies(model, weights))


def _lines(model: ir.Model, weights: set[str]) -> list[str]:
    """Everything a graph says but the content of its weights, one line for each thing."""
    names = _value_names(model, weights)
    graph = model.graph
    return [
        *(f"input {value.name}: {_type(value)}" for value in graph.inputs),
        *(_node_line(node, number, names) for number, node in enumerate(graph)),
        *(f"output {value.name}: {names[value]} {_type(value)}" for value in graph.outputs),
        *sorted(f"weight {name}: {_type(value)}" for name, value in graph.initializers.items() if name in weights),
        *_function_lines(model),
        *(f"operator set '{domain}' {version}" for domain, version in sorted(model.opset_imports.items())),
        *(f"metadata {key}: {text}" for key, text in sorted(model.metadata_props.items())),
    ]


def _step_bodies(model: ir.Model, weights: set[str]) -> dict[str, str]:
    """What each operator of the three steps is and reads, by its label: attributes but the number of rows, weights, and operators before.

    Operators and graph inputs that only choose the tokens of a step are left out.
    """
    sources: dict[ir.Value, frozenset[str]] = {value: frozenset() for value in model.graph.inputs}
    for name, value in model.graph.initializers.items():
        sources[value] = frozenset({name} if name in weights else ())
    bodies = {}
    for node in model.graph:
        read = [sources[value] for value in node.inputs if value is not None]
        if node.domain != DOMAIN:
            sources |= dict.fromkeys(node.outputs, frozenset[str]().union(*read))
            continue
        label = node.name or ""
        step, _, place = label.partition(".")
        closes = place in _STEP_OWN
        sources |= {value: frozenset(() if closes else {f"{label}.{number}"}) for number, value in enumerate(node.outputs)}
        if step.startswith("step") and not closes:
            given = ", ".join("+".join(sorted(names)) for names in read)
            bodies[label] = f"{node.op_type}({given}) {_attributes(node, without=('rows',))}"
    return bodies


def _value_names(model: ir.Model, weights: set[str]) -> dict[ir.Value, str]:
    """A name for every value that does not depend on how the exporter counts."""
    names: dict[ir.Value, str] = {value: str(value.name) for value in model.graph.inputs}
    for name, value in model.graph.initializers.items():
        names[value] = name if name in weights else _constant(value)
    for number, node in enumerate(model.graph):
        for place, value in enumerate(node.outputs):
            names[value] = f"{_place(node, number)}.{place}"
    return names


def _place(node: ir.Node, number: int) -> str:
    return str(node.name) if node.domain == DOMAIN else f"#{number}"


def _node_line(node: ir.Node, number: int, names: Mapping[ir.Value, str]) -> str:
    given = ", ".join("-" if value is None else names.get(value, "unknown") for value in node.inputs)
    made = ", ".join(_type(value) for value in node.outputs)
    domain = f"{node.domain}." if node.domain else ""
    return f"{_place(node, number)} = {domain}{node.op_type}({given}) {_attributes(node)} -> {made}"


def _attributes(node: ir.Node, without: Sequence[str] = ()) -> str:
    shown = {name: attribute for name, attribute in sorted(node.attributes.items()) if name not in without}
    return "{" + ", ".join(f"{name}={_attribute(attribute)}" for name, attribute in shown.items()) + "}"


def _attribute(attribute: ir.Attr) -> str:
    """As a file stores it: floats in FP32."""
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return _tensor(value)
    if attribute.type == ir.AttributeType.FLOAT:
        return str(np.float32(value))
    return str(list(value) if isinstance(value, tuple | list) else value)


def _constant(value: ir.Value) -> str:
    assert value.const_value is not None
    return _tensor(value.const_value)


def _tensor(tensor: ir.TensorProtocol) -> str:
    """Type, shape and content; a long content by its hash."""
    content = tensor.numpy().flatten().tolist() if tensor.size <= 16 else hashlib.sha256(tensor.tobytes()).hexdigest()[:16]
    return f"{tensor.dtype.name}{list(tensor.shape)}={content}"


def _type(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name
    return f"{dtype}{'?' if value.shape is None else [str(size) for size in value.shape]}"


def _function_lines(model: ir.Model) -> Iterator[str]:
    for (domain, name, overload), function in sorted(model.functions.items()):
        proto: onnx.FunctionProto = ir.to_proto(function)
        content = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()[:16]
        yield f"function {domain}.{name}{overload} {content}"
