"""Replaces operator nodes of an exported graph by `KernelProgram` nodes, which the plugin host runs.

Operators without a kernel keep their function and are built natively. Runs before functions are inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from ..core.dtypes import FROM_ONNX, DType
from ..core.errors import BuildError
from ..core.recipe import Fp8Accumulation
from ..operators.launch.compile import Build, compile_many
from ..operators.launch.encoding import encode
from ..operators.launch.node import Node
from ..operators.launch.program import InputType, Kernel, Program
from ..operators.launch.tiles import Tiles, committed_tiles
from ..operators.operator import DOMAIN
from .functions import all_nodes
from .preconditions import WRONG_NATIVELY

if TYPE_CHECKING:  # factories bring Triton along, which a build without plugins can do without
    from ..operators.kernels.registry import KernelFactory

OP_TYPE, PLUGIN_VERSION = "KernelProgram", "1"
FP8: DType = "float8_e4m3fn"

Compile = Callable[[Build], Kernel]
_MULTIPLICATIONS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class KernelNode:
    """A node that a launch program computes.

    Attributes:
        name: Its place in the model, such as `step1.blocks.3.cross.q`.
        operator: What it was.
        kernels: Names of its kernels.
        product: Whether the operator's function multiplies matrices.
        in_fp8: Whether it is a product of FP8 codes.
        fp8_outputs: Names of its outputs that are FP8 codes.
    """

    name: str
    operator: str
    kernels: tuple[str, ...]
    product: bool
    in_fp8: bool
    fp8_outputs: tuple[str, ...]


@dataclass(frozen=True)
class Kernels:
    """Which kernels a build uses: factories by operator, the GPU's compute capability, and the tiles.

    `tiles`: Default: the committed table as it is. `fp8_accumulation`: of FP8 products. Default: fast.
    """

    factories: Mapping[str, KernelFactory]
    capability: str
    tiles: Tiles = field(default_factory=committed_tiles, repr=False)
    fp8_accumulation: Fp8Accumulation = "fast"


def use_kernels(model: onnx.ModelProto, kernels: Kernels) -> tuple[KernelNode, ...]:
    """Replace, in place, every node whose operator has a kernel.

    Raises:
        BuildError: A factory refuses a node, or its program does not fit the node; names the node.
    """
    graph = _Graph(model)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in kernels.factories]
    compile_ = _compiled_together(graph, nodes, kernels)
    replaced = []
    for node in nodes:
        program = _program(graph, node, kernels, compile_)
        if program is None:
            continue
        made = _node(node, program)
        replaced.append(_description(graph, node.op_type, made, program))
        node.CopyFrom(made)
    return tuple(replaced)


def _compiled_together(graph: _Graph, nodes: Iterable[onnx.NodeProto], kernels: Kernels) -> Compile:
    """What gives every kernel that the factories ask for at these nodes: they are asked once before, and all kernels compiled at once."""
    wanted: dict[str, Build] = {}

    def note(build: Build) -> Kernel:
        wanted[repr(build)] = build
        return Kernel(b"not compiled yet", build.function, build.warps, 0, 0)

    for node in nodes:
        _program(graph, node, kernels, note)
    made = dict(zip(wanted, compile_many(wanted.values()).values(), strict=True))

    def give(build: Build) -> Kernel:
        kernel = made[repr(build)]
        if isinstance(kernel, BuildError):
            raise kernel
        return kernel

    return give


def _program(graph: _Graph, node: onnx.NodeProto, kernels: Kernels, compile_: Compile) -> Program | None:
    """The program of the operator's factory, checked against the node."""
    factory, types = kernels.factories[node.op_type], tuple(map(graph.input_type, node.input))
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    read = tuple(output in graph.read for output in node.output)
    constant = tuple(name in graph.initializers for name in node.input)
    try:
        program = factory.program(Node(node.op_type, types, attributes, kernels.capability, read, kernels.tiles, compile_, constant))
    except BuildError as error:
        raise _refusal(node, error.what, error.hint) from error
    if program is None:
        return None
    if len(program.inputs) != len(types) or not all(map(_takes, program.inputs, types)):
        raise _refusal(node, f"its program takes {_text(program.inputs)}, the node has {_text(types)}")
    if not len(read) >= len(program.outputs) > max((number for number, is_read in enumerate(read) if is_read), default=-1):
        raise _refusal(node, f"its program has {len(program.outputs)} outputs, somebody reads another one of {len(read)}")
    for name, tensor in zip(node.output, program.outputs, strict=False):
        known = graph.value_type(name)
        if known is not None and (known.dtype, len(known.shape)) != (tensor.dtype, len(tensor.shape)):
            made = f"{tensor.dtype} of {len(tensor.shape)} dimensions"
            raise _refusal(node, f"its program makes '{name}' {made}, the graph says {_text([known])}")
    return program


def _takes(wanted: InputType, given: InputType) -> bool:
    if (wanted.dtype, len(wanted.shape)) != (given.dtype, len(given.shape)):
        return False
    return all(want is None or want == size for want, size in zip(wanted.shape, given.shape, strict=True))


def _text(types: Iterable[InputType]) -> str:
    return ", ".join(f"{each.dtype} {['any' if size is None else size for size in each.shape]}" for each in types)


def _refusal(node: onnx.NodeProto, what: str, hint: str = "") -> BuildError:
    hint = hint or ("report it" if node.op_type in WRONG_NATIVELY else "set build.plugins to false to build without kernels, and report it")
    return BuildError(f"the kernel of {node.op_type} does not fit: {what}", where=f"node {node.name}", hint=hint)


def _node(node: onnx.NodeProto, program: Program) -> onnx.NodeProto:
    """A plugin node in the place and under the name of an operator node. An output that nobody reads gets a name all the same."""
    outputs = [name or f"{node.name}.unread_{number}" for number, name in enumerate(node.output)][: len(program.outputs)]
    return helper.make_node(
        OP_TYPE,
        node.input,
        outputs,
        name=node.name,
        domain=DOMAIN,
        program=encode(program),
        plugin_version=PLUGIN_VERSION,
        plugin_namespace="",
    )


def _description(graph: _Graph, operator: str, made: onnx.NodeProto, program: Program) -> KernelNode:
    product = graph.multiplies(DOMAIN, operator)
    launches = [launch for variant in program.variants for launch in variant.launches]
    return KernelNode(
        name=made.name,
        operator=operator,
        kernels=tuple(dict.fromkeys(launch.kernel.entry for launch in launches)),
        product=product,
        in_fp8=product and any(given.dtype == FP8 for given in program.inputs),
        fp8_outputs=tuple(name for name, tensor in zip(made.output, program.outputs, strict=True) if tensor.dtype == FP8),
    )


def _dtype(number: int, name: str) -> DType:
    onnx_name = onnx.TensorProto.DataType.Name(number)
    if onnx_name not in FROM_ONNX:
        raise BuildError(f"'{name}' is {onnx_name}, which no kernel takes", hint="set build.plugins to false to build without kernels")
    return FROM_ONNX[onnx_name].name


class _Graph:
    """What is known of a model's tensors and functions."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.initializers = {initializer.name: initializer for initializer in graph.initializer}
        self.functions = {(function.domain, function.name): function for function in model.functions}
        self.read = {name for node in all_nodes(graph) for name in node.input} | {output.name for output in graph.output}
        self._values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    def input_type(self, name: str) -> InputType:
        """Type and shape of a tensor.

        Raises:
            BuildError: The graph does not say.
        """
        known = self.initializers.get(name)
        found = self.value_type(name) if known is None else InputType(_dtype(known.data_type, name), tuple(known.dims))
        if found is None:
            raise BuildError(f"the graph does not say the type and shape of '{name}'", hint="run `onerec-trt export` again")
        return found

    def value_type(self, name: str) -> InputType | None:
        """Type and shape of what a node computes, if the graph says."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        kind = value.type.tensor_type
        return InputType(_dtype(kind.elem_type, name), tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))

    def multiplies(self, domain: str, name: str) -> bool:
        """Whether a function, or one that it calls, multiplies matrices."""
        function = self.functions.get((domain, name))
        nodes = () if function is None else function.node
        return any(node.op_type in _MULTIPLICATIONS or self.multiplies(node.domain, node.op_type) for node in nodes)
