"""What is checked before TensorRT is asked: operators it cannot know or builds wrongly, top-k it cannot do, GPUs it cannot build for.

Each of these costs a long build, an aborted process or a wrong plan, when it is found later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ..core.errors import BuildError
from ..core.recipe import MAX_TOPK, BuildOptions, ExportOptions
from ..runtime.tensorrt_api import Bindings
from .functions import STANDARD_DOMAINS, all_nodes

FP8_CAPABILITY = (8, 9)  # first compute capability with FP8 tensor cores; TensorRT-RTX refuses FP8 below it
FP8_TYPES = (onnx.TensorProto.FLOAT8E4M3FN,)
# TensorRT 10.6 builds their functions into steps that find semantic IDs of no item: of 106 that one plan found, 83 were in the catalogue.
WRONG_NATIVELY = ("BeamStepItems1", "BeamStepItems2", "BeamStepItems3")

_WRONG_ITEMS = "built by TensorRT natively, beam steps that follow a catalogue find semantic IDs of no item"
_WITH_KERNELS = "set build.plugins: true, so that their kernels run"


def check_capabilities(bindings: Bindings, capabilities: tuple[str, ...], *, fp8: bool) -> None:
    """Refuse compute capabilities this library cannot build for without their GPU.

    Raises:
        BuildError: Names the capability, those that can be built, and what to do.
    """
    known = bindings.buildable_without_gpu()
    for capability in capabilities:
        if capability not in known:
            hint = f"choose among {', '.join(known)}; for another GPU, such as H200 (9.0), build with TensorRT on a machine that has it"
            raise BuildError(
                f"{bindings.target} {bindings.version} cannot build for compute capability {capability}",
                where="build.compute_capabilities",
                hint=hint,
            )
        if fp8 and tuple(map(int, capability.split("."))) < FP8_CAPABILITY:
            raise BuildError(
                f"compute capability {capability} has no FP8 tensor cores, and this model is quantized to FP8",
                where="build.compute_capabilities",
                hint="take 8.9 or newer, or the recipe's precision fp16",
            )


def check_items(export: ExportOptions, build: BuildOptions) -> None:
    """Refuse what a recipe says of its beams and its build, before there is a graph.

    Raises:
        BuildError: Beams follow a catalogue, and the target `tensorrt` is without plugins.
    """
    if export.items == "catalogue" and build.target == "tensorrt" and not build.plugins:
        raise BuildError(_WRONG_ITEMS, where="build.plugins", hint=_WITH_KERNELS)


def check_native_operators(model: onnx.ModelProto, path: Path, wrong: Collection[str], *, plugins: bool) -> None:
    """Refuse a graph with operators that would be built natively, and wrongly. Looks at it before functions are inlined.

    Args:
        model: The graph, with kernels in the place of operators.
        path: Where it comes from.
        wrong: Operators that the library builds wrongly.
        plugins: Whether this is a build with plugins, in which these nodes have no kernel.

    Raises:
        BuildError: There are such nodes; names them.
    """
    if names := [node.name for node in all_nodes(model.graph) if node.op_type in wrong]:
        too_wide = "take fewer beams: their kernels have a limit (docs/kernels/beam-step.md)"
        hint = too_wide if plugins else _WITH_KERNELS
        raise BuildError(_WRONG_ITEMS, where=f"{path}, nodes {', '.join(names)}", hint=hint)


def check_graph(model: onnx.ModelProto, path: Path, plugins: Collection[str] = ()) -> None:
    """Refuse an inlined graph that TensorRT cannot take.

    Args:
        model: The graph.
        path: Where it comes from.
        plugins: Operators that a plugin stands for. Default: none, a native build.

    Raises:
        BuildError: An operator without a definition remains, or a TopK is larger than TensorRT can do.
    """
    foreign = Counter(
        f"{n.domain}::{n.op_type}" for n in all_nodes(model.graph) if n.domain not in STANDARD_DOMAINS and n.op_type not in plugins
    )
    if foreign:
        names = ", ".join(f"{name} ({count}x)" for name, count in sorted(foreign.items()))
        raise BuildError(
            f"operators that TensorRT does not know: {names}",
            where=str(path),
            hint="a native build needs each operator's function in the file; run `onerec-trt export` again",
        )
    constants = _constants(model.graph)
    for node in all_nodes(model.graph):
        if node.op_type == "TopK" and (k := _scalar(constants.get(node.input[1]), path)) is not None and k > MAX_TOPK:
            raise BuildError(
                f"top-{k} is beyond TensorRT's limit of {MAX_TOPK}",
                where=f"{path}, node {node.name or node.output[0]}",
                hint="take a smaller beam: the first step keeps at most that many candidates",
            )


def has_fp8(model: onnx.ModelProto) -> bool:
    """Whether any constant of the graph is FP8."""
    return any(initializer.data_type in FP8_TYPES for initializer in model.graph.initializer)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {initializer.name: initializer for initializer in graph.initializer}
    for node in all_nodes(graph):
        if node.op_type == "Constant":
            found[node.output[0]] = _constant(node.attribute[0])
    return found


def _constant(value: onnx.AttributeProto) -> onnx.TensorProto:
    return value.t if value.type == value.TENSOR else numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(value)))


def _scalar(tensor: onnx.TensorProto | None, path: Path) -> int | None:
    """The one integer of a constant; None where the value is computed in the graph."""
    return None if tensor is None else int(numpy_helper.to_array(tensor, base_dir=str(path.parent)).reshape(-1)[0])
