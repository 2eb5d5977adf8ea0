"""What a fusion is, and how it rewrites a graph: every chain that matches as a whole becomes one node, everything else stays as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from ...operators.operator import DOMAIN, Operator
from ...operators.registry import functions_of
from ..functions import all_nodes

Shape = tuple[int | None, ...]  # None where a dimension is dynamic
_OUTSIDE = -1  # in place of a node's number: the graph's outputs, and bodies of If, Loop and Scan


def any_shapes(_shapes: Sequence[Shape | None]) -> bool:
    """The condition of a fusion that takes every shape."""
    return True


def one_scale(shapes: Sequence[Shape | None]) -> bool:
    """The condition of one whose kernel reads a single number as the scale; the operator would take any shape that broadcasts."""
    return shapes[-1] == (1,)


@dataclass(frozen=True)
class Part:
    """An operator of a chain.

    Attributes:
        operator: Its name.
        reads: Which of its inputs is the first output of the part before. Of no use in the first part.
    """

    operator: str
    reads: int = 0


@dataclass(frozen=True)
class Fusion:
    """A chain of operators and the fused operator that takes its place.

    Nothing but the next part may read what a part leaves to it, and nobody may read a part's other outputs; the last part's are free.
    The fused node has the inputs of all parts in order, without the edges between them, the attributes of all parts, which may
    not contradict each other, and the outputs of the last part. It carries the name of the first part, its place in the model.
    It stands where the last part was, so of what the first part leaves it can give to nodes behind that place alone.

    Attributes:
        name: As the plan's record has it.
        parts: The chain.
        fused: Its reference is the composition of the parts' references, its function that of their functions.
        fits: Of the shapes of the fused node's inputs, None where the graph does not say one. Default: all fit.
        one_tensor: Two of the inputs that must be one tensor, which the fused node has in the place of the first. Default: none.
        keeps: Whether the fused node gives what the first part leaves to the next one, too, before the outputs of the last part. Nodes
            behind the last part then read it, one at least, as a program leaves out unread outputs at its end alone. The graph itself,
            and bodies of If, Loop and Scan, may not. Default: it vanishes.
    """

    name: str
    parts: tuple[Part, ...]
    fused: Operator
    fits: Callable[[Sequence[Shape | None]], bool] = any_shapes
    one_tensor: tuple[int, int] | None = None
    keeps: bool = False


@dataclass(frozen=True)
class FusedNode:
    """A node that a fusion made.

    Attributes:
        fusion: The fusion's name.
        name: Its own.
        parts: Names of the nodes whose place it took.
        keeps: Whether its first output is that of the first part; the others are those of the last.
    """

    fusion: str
    name: str
    parts: tuple[str, ...]
    keeps: bool = False


def fuse(model: onnx.ModelProto, fusions: Iterable[Fusion]) -> tuple[FusedNode, ...]:
    """Apply fusions in their order, in place. Functions of fused operators join those of the file, which stay the file's own."""
    return tuple(made for fusion in fusions for made in _apply(model, fusion))


def _apply(model: onnx.ModelProto, fusion: Fusion) -> list[FusedNode]:
    """The graph changes at the end alone, when all new nodes are known."""
    graph = _Graph(model.graph)
    made, new, gone = [], {}, set[int]()
    for number in range(len(graph.nodes)):
        chain = graph.chain(number, fusion)
        if chain is None or not gone.isdisjoint(chain):
            continue
        parts = [graph.nodes[each] for each in chain]
        node = _fused_node(parts, fusion)
        if node is None or not fusion.fits([graph.shapes.get(name) for name in node.input]):
            continue
        new[chain[-1]] = node  # where all inputs of all parts are known
        gone |= set(chain)
        made.append(FusedNode(fusion.name, node.name, tuple(part.name for part in parts), fusion.keeps))
    if made:
        _rewrite(model, [new.get(n, node) for n, node in enumerate(graph.nodes) if n in new or n not in gone])
        _add_functions(model, fusion.fused)
    return made


def _fused_node(parts: Sequence[onnx.NodeProto], fusion: Fusion) -> onnx.NodeProto | None:
    """None where attributes contradict each other, or inputs differ that must be one tensor."""
    inputs, attributes = list(parts[0].input), dict[str, onnx.AttributeProto]()
    for part, node in zip(fusion.parts[1:], parts[1:], strict=True):
        inputs += [name for number, name in enumerate(node.input) if number != part.reads]
    for attribute in (attribute for node in parts for attribute in node.attribute):
        if attributes.setdefault(attribute.name, attribute) != attribute:
            return None
    if fusion.one_tensor is not None:
        first, second = fusion.one_tensor
        if inputs[first] != inputs.pop(second):
            return None
    outputs = [*(parts[0].output[:1] if fusion.keeps else []), *parts[-1].output]
    made = helper.make_node(fusion.fused.name, inputs, outputs, parts[0].name, domain=DOMAIN)
    made.attribute.extend(attributes.values())
    return made


def _rewrite(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put the nodes in the place of the graph's own, and forget the types of tensors that nobody makes any more."""
    before = _made(model.graph)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    vanished = before - _made(model.graph)
    values = [value for value in model.graph.value_info if value.name not in vanished]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


def _made(graph: onnx.GraphProto) -> set[str]:
    return {output for node in graph.node for output in node.output}


def _add_functions(model: onnx.ModelProto, operator: Operator) -> None:
    known = {(function.domain, function.name) for function in model.functions}
    model.functions.extend(proto for proto in functions_of([operator]) if (proto.domain, proto.name) not in known)


class _Graph:
    """Who reads what in a graph, and the shapes it states."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.shapes: dict[str, Shape] = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                dimensions = value.type.tensor_type.shape.dim
                self.shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dimensions)
        self._readers: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # number of the node, and of its input
        for number, node in enumerate(self.nodes):
            for place, name in enumerate(node.input):
                self._readers[name].append((number, place))
            for name in _read_in_bodies(node):
                self._readers[name].append((_OUTSIDE, 0))
        for output in graph.output:
            self._readers[output.name].append((_OUTSIDE, 0))

    def chain(self, first: int, fusion: Fusion) -> list[int] | None:
        """Numbers of the nodes that match a fusion's parts, from the given one on."""
        if not self._is(first, fusion.parts[0]):
            return None
        chain, behind = [first], list[int]()  # numbers of other readers of what is kept
        for part in fusion.parts[1:]:
            output, *unread = self.nodes[chain[-1]].output
            if any(self._readers[other] for other in unread if other):
                return None
            readers = self._readers[output]
            matching = [reader for reader, place in readers if reader != _OUTSIDE and place == part.reads and self._is(reader, part)]
            kept = fusion.keeps and chain == [first]
            if len(matching) != 1 or (len(readers) != 1 and not kept):
                return None
            behind += [reader for reader, place in readers if (reader, place) != (matching[0], part.reads)]
            chain += matching
        return chain if all(reader > chain[-1] for reader in behind) and bool(behind) == fusion.keeps else None

    def _is(self, number: int, part: Part) -> bool:
        return (self.nodes[number].domain, self.nodes[number].op_type) == (DOMAIN, part.operator)


def _read_in_bodies(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the bodies of If, Loop and Scan read or give."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (name for inner in all_nodes(body) for name in inner.input)
            yield from (output.name for output in body.output)
