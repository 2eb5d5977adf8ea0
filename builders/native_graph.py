"""A graph ready for a build: operators fused, kernels in their place, other functions inlined, nodes named, checked, with profiles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..core.errors import BuildError
from ..core.graph_io import GraphIO
from ..core.recipe import Profile
from ..runtime.tensorrt_api import ShapeRange
from .fp8_accumulation import set_fp8_accumulation
from .fp8_gemms import QuantizedGemms, quantized_gemms
from .functions import inline_functions, io_of, load_graph
from .fusions.fusion import FusedNode, fuse
from .fusions.registry import FUSIONS
from .kernel_programs import OP_TYPE, KernelNode, Kernels, use_kernels
from .preconditions import FP8_TYPES, check_graph, check_native_operators
from .profiles import profile_shapes, require_contract

_SHOWN = 5


@dataclass(frozen=True)
class NativeGraph:
    """`source` is the exported graph; external data lies in its folder. `model` is inlined and checked.
    `gemms` are those of the exported graph, `io` is its contract.

    `kernel_nodes`: nodes that kernels compute, `fused_nodes`: nodes that stand for several of the exported graph;
    none in a build without plugins.
    """

    source: Path
    model: onnx.ModelProto
    io: GraphIO
    profiles: list[dict[str, ShapeRange]]
    gemms: QuantizedGemms
    kernel_nodes: tuple[KernelNode, ...] = ()
    fused_nodes: tuple[FusedNode, ...] = ()


def prepare(
    source: Path,
    profiles: Sequence[Profile],
    rewrite: Callable[[onnx.ModelProto], None] | None = None,
    kernels: Kernels | None = None,
    wrong_natively: Collection[str] = (),
) -> NativeGraph:
    """Inline and check a graph, before any build starts.

    Args:
        source: The exported graph.
        profiles: Ranges of batch and context, corrected.
        rewrite: Changes the inlined graph in place into the forms a library knows. Default: none.
        kernels: Those that take the place of their operators. Default: none, everything is built natively.
        wrong_natively: Operators that the library builds wrongly, so that each needs a kernel. Default: none.

    Raises:
        ArtifactError: The graph does not say what its inputs and outputs are.
        BuildError: The graph cannot be built, or a kernel does not fit its node; says why and what to do.
    """
    exported = load_graph(source)
    io = io_of(exported, source)
    require_contract(exported, io, str(source))
    fused_nodes, kernel_nodes = ((), ()) if kernels is None else _with_kernels(exported, kernels)
    check_native_operators(exported, source, wrong_natively, plugins=kernels is not None)
    graph = inline_functions(exported)
    check_graph(graph, source, plugins=(OP_TYPE,) if kernel_nodes else ())
    gemms = quantized_gemms(graph, kernel_nodes)
    _require_every_product(exported, gemms, source)
    if rewrite is not None:
        rewrite(graph)
    return NativeGraph(source, graph, io, profile_shapes(io, profiles), gemms, kernel_nodes, fused_nodes)


def _with_kernels(model: onnx.ModelProto, kernels: Kernels) -> tuple[tuple[FusedNode, ...], tuple[KernelNode, ...]]:
    """Fuse what has a fused kernel, then let kernels take the place of operators."""
    set_fp8_accumulation(model, kernels.fp8_accumulation)
    fused_nodes = fuse(model, [fusion for fusion in FUSIONS if fusion.fused.name in kernels.factories])
    return fused_nodes, use_kernels(model, kernels)


def _require_every_product(exported: onnx.ModelProto, gemms: QuantizedGemms, source: Path) -> None:
    """Refuse a product of FP8 weights that is not recognized: it would be missing, unnoticed, from what a plan is checked for."""
    functions = {(function.domain, function.name) for function in exported.functions}
    weights = {initializer.name for initializer in exported.graph.initializer if initializer.data_type in FP8_TYPES}
    calls = [node for node in exported.graph.node if (node.domain, node.op_type) in functions and weights.intersection(node.input)]
    found = {name.partition("/")[0] for name in (*gemms.in_fp8, *gemms.dequantized)}
    if unseen := [node.name for node in calls if node.name not in found]:
        raise BuildError(
            f"{len(unseen)} operators with FP8 weights have no product that is recognized as quantized: {', '.join(unseen[:_SHOWN])}",
            where=str(source),
            hint="their functions must bring DequantizeLinear to MatMul through changes of layout and casts alone",
        )
