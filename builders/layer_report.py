"""What a plan built on its GPU really runs, from the engine inspector's JSON: which kernel computes which multiplication.

Layers that compute no matrix multiplication are left out; the whole JSON is kept beside the plan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..runtime.inspector_report import name_and_profile, nodes_of, plugin_name, tensors_of
from ..runtime.plan_record import PlanLayer
from .kernel_programs import KernelNode

# A layer that came from a multiplication may only move its operands; these words tell the ones that multiply.
# `Fc` is how the compiler names a multiplication inside a kernel it generates, such as __myl_MulFcAdd_0x...
_MULTIPLIES = re.compile(r"gemm|gemv|matmul|matrix|xmma|cutlass|mha|attention", re.I)
_GENERATED_PRODUCT = re.compile(r"(?<=[a-z_])Fc(?=[A-Z_]|$)")
_GENERATED = "__myl_"
_FP8_KERNEL = re.compile(r"e4m3|fp8", re.I)
_FP8_TYPE = re.compile(r"fp8|e4m3", re.I)


def plan_layers(
    report: Mapping[str, Any], multiplications: Collection[str], kernel_nodes: Sequence[KernelNode] = ()
) -> tuple[PlanLayer, ...]:
    """The layers that compute multiplications, in every profile.

    Args:
        report: The inspector's JSON.
        multiplications: Names of the graph's MatMul and Gemm nodes.
        kernel_nodes: Nodes that kernels of ours compute. Default: none.
    """
    products = {node.name: node for node in kernel_nodes if node.product}
    entries = [entry for entry in report["Layers"] if isinstance(entry, dict)]  # a plan built with less detail gives names
    layers = (_layer(entry, multiplications) or _plugin_layer(entry, products) for entry in entries)
    return tuple(layer for layer in layers if layer is not None)


def computed_in_fp8(layers: Sequence[PlanLayer]) -> frozenset[str]:
    """ONNX nodes that every layer known to compute them, in every profile, computes in FP8.

    Whether a layer is there for each profile cannot be told: only some of TensorRT 10.6's layers name theirs.
    """
    in_fp8 = {node for layer in layers if layer.in_fp8 for node in layer.nodes}
    return frozenset(in_fp8 - {node for layer in layers if not layer.in_fp8 for node in layer.nodes})


def _layer(entry: Mapping[str, Any], multiplications: Collection[str]) -> PlanLayer | None:
    kernel, kind = str(entry.get("TacticName", "")), str(entry.get("LayerType", ""))
    nodes = tuple(dict.fromkeys(node for node in nodes_of(entry) if node in multiplications))
    if not nodes or not _multiplies(kernel, kind):
        return None
    inputs = tensors_of(entry, "Inputs")
    return _plan_layer(entry, nodes, kernel, _in_fp8(kernel, kind, inputs))


def _plugin_layer(entry: Mapping[str, Any], products: Mapping[str, KernelNode]) -> PlanLayer | None:
    """A product that the plugin host runs. The inspector knows nothing of its kernels; the launch program names them."""
    own = plugin_name(entry)
    quoted = (*nodes_of(entry), *own) if own else ()
    node = next((products[name] for name in quoted if name in products), None)
    if node is None:
        return None
    return _plan_layer(entry, (node.name,), ", ".join(node.kernels), node.in_fp8)


def _plan_layer(entry: Mapping[str, Any], nodes: tuple[str, ...], kernel: str, in_fp8: bool) -> PlanLayer:
    name, profile = name_and_profile(entry)
    return PlanLayer(
        profile=profile,
        name=name,
        kind=str(entry.get("LayerType", "")),
        nodes=nodes,
        kernel=kernel,
        inputs=tensors_of(entry, "Inputs"),
        outputs=tensors_of(entry, "Outputs"),
        in_fp8=in_fp8,
    )


def _multiplies(kernel: str, kind: str) -> bool:
    return bool(_MULTIPLIES.search(kind) or _MULTIPLIES.search(kernel) or _GENERATED_PRODUCT.search(kernel))


def _in_fp8(kernel: str, kind: str, inputs: Sequence[str]) -> bool:
    """A library kernel says its types in its name. A generated one says nothing, and may widen FP8 codes before it multiplies them."""
    if _FP8_KERNEL.search(kernel):
        return True
    return not kernel.startswith(_GENERATED) and bool(_MULTIPLIES.search(kind)) and any(_FP8_TYPE.match(tensor) for tensor in inputs)
