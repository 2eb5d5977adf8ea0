"""Model-local functions written out as the standard operators they stand for, as a native build wants them.

External data stays on disk: a model of any size passes through here as its graph alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ..core.errors import BuildError
from ..core.graph_io import GraphIO, parse_io

STANDARD_DOMAINS = ("", "ai.onnx")


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a model without its external data.

    Raises:
        BuildError: The file is missing or is no ONNX model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise BuildError("no ONNX model to build from", where=str(path), hint="run `onerec-trt export` first") from None
    except DecodeError as error:
        raise BuildError(f"not an ONNX model: {error}", where=str(path), hint="run `onerec-trt export` again") from None
    if not model.graph.node:
        raise BuildError("the ONNX model has no nodes", where=str(path), hint="run `onerec-trt export` again")
    return model


def io_of(model: onnx.ModelProto, path: Path) -> GraphIO:
    """The contract that a model carries.

    Raises:
        ArtifactError: It carries none, or a malformed one.
    """
    return parse_io({entry.key: entry.value for entry in model.metadata_props}, str(path))


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every call of a model-local function by its body; a body's nodes are named after the call.

    TensorRT rejects a function that is used twice; the inliner makes the names of its inner tensors unique. The names
    make TensorRT's reports readable: the second MatMul of the call `step0.ffn.experts` is `step0.ffn.experts/MatMul_1`.
    """
    inlined = onnx.inliner.inline_local_functions(model)
    _name_bodies(model, inlined)
    used = {opset.domain for opset in inlined.opset_import}
    for domain in used - {node.domain for node in all_nodes(inlined.graph)} - set(STANDARD_DOMAINS):
        kept = [opset for opset in inlined.opset_import if opset.domain != domain]
        del inlined.opset_import[:]
        inlined.opset_import.extend(kept)
    for node in inlined.graph.node:
        if not node.name:
            node.name = next(output for output in node.output if output)
    return inlined


def _name_bodies(model: onnx.ModelProto, inlined: onnx.ModelProto) -> None:
    """The bodies stand in the order of their calls, so that each call's share of the inlined nodes is known by its length."""
    functions = {(f.domain, f.name): f for f in model.functions}
    nodes = iter(inlined.graph.node)
    for call in model.graph.node:
        body = list(islice(nodes, _length(call, functions)))
        if (call.domain, call.op_type) not in functions or not call.name:
            continue
        seen: Counter[str] = Counter()
        for node in body:
            number = seen[node.op_type]
            node.name = f"{call.name}/{node.op_type}" + (f"_{number}" if number else "")
            seen[node.op_type] += 1
    assert next(nodes, None) is None, "the inliner did not write out every call in its place"


def _length(node: onnx.NodeProto, functions: dict[tuple[str, str], onnx.FunctionProto]) -> int:
    """Nodes that a node becomes when it is inlined."""
    function = functions.get((node.domain, node.op_type))
    return 1 if function is None else sum(_length(inner, functions) for inner in function.node)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those in the bodies of If, Loop and Scan included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from all_nodes(body)
