"""What TensorRT's engine inspector says of a plan's layers: which ONNX nodes each computes, by which kernel, where in the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .plan_record import PlanLayer

# A layer's metadata names every ONNX node it came from: "[ONNX Layer: a]", separated by control characters or nothing.
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PROFILE = re.compile(r" ?\[profile (\d+)\]")  # marks the layers of every profile but the first
_NUMBER = re.compile(r"(?<=step)\d+|(?<=blocks\.)\d+")
_STEP = re.compile(r"^step\*\.")
_PLUGIN = re.compile(r"plugin", re.I)  # LayerType of a plugin's layer


def name_and_profile(entry: Mapping[str, Any]) -> tuple[str, int]:
    """A layer's name without the mark of its profile, and that profile's number."""
    name = str(entry["Name"])
    mark = _PROFILE.search(name)
    return _PROFILE.sub("", name), int(mark[1]) if mark else 0


def nodes_of(entry: Mapping[str, Any]) -> list[str]:
    """The ONNX nodes that a layer came from."""
    return _NODE.findall(str(entry.get("Metadata", "")))


def plugin_name(entry: Mapping[str, Any]) -> list[str]:
    """The ONNX node of a plugin's layer, which is named after it; empty for other layers."""
    return [name_and_profile(entry)[0]] if _PLUGIN.search(str(entry.get("LayerType", ""))) else []


def tensors_of(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The `Inputs` or `Outputs` of a layer, such as 'Half [64, 1408]'."""
    return tuple(map(_tensor, entry.get(key, [])))


def places_of_layers(report: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """For each layer's name the places in a block it computes, such as 'blocks.*.cross.norm, blocks.*.cross.q', and its kernel.

    Args:
        report: The inspector's JSON.
    """
    places = {}
    for entry in report["Layers"]:
        if isinstance(entry, dict):
            nodes = nodes_of(entry) or plugin_name(entry)
            calls = dict.fromkeys(_STEP.sub("", _NUMBER.sub("*", node.partition("/")[0])) for node in nodes)
            places[str(entry["Name"])] = (", ".join(calls) or "elsewhere", str(entry.get("TacticName") or entry.get("LayerType", "")))
    return places


def summary(layers: Sequence[PlanLayer]) -> list[str]:
    """One line for each kind of product and kernel: 'step*.blocks.*.cross.q/MatMul: 42 x sm90_xmma_gemm_e4m3..., FP8'."""
    counts = Counter((_NUMBER.sub("*", node), layer.kernel, layer.in_fp8) for layer in layers for node in layer.nodes)
    return [f"{node}: {count} x {kernel}{', FP8' if in_fp8 else ''}" for (node, kernel, in_fp8), count in counts.items()]


def _tensor(tensor: Mapping[str, Any]) -> str:
    """TensorRT 10 has one field for format and data type, TensorRT 11 has two."""
    kind = next((str(tensor[key]) for key in ("Datatype", "DataType", "Format/Datatype") if key in tensor), "unknown")
    return f"{kind} {list(tensor.get('Dimensions', []))}"
