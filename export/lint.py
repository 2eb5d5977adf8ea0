"""What can be wrong with an exported graph and still load: findings with where and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import onnx
from pydantic import BaseModel

from ..calibration.targets import fp8_attention, quantized_products
from ..core.precision import Precision
from ..core.recipe import MAX_TOPK
from ..models.config import LEVELS, OneRecConfig
from ..models.layout import attention_place
from ..operators.operator import DOMAIN
from ..operators.registry import FP8_EXPERTS

ITEM_STEPS = tuple(f"BeamStepItems{level + 1}" for level in range(LEVELS))
_FP8 = onnx.TensorProto.FLOAT8E4M3FN
_UNQUANTIZED_GEMMS = ("Linear", "LinearAdd", "MoeExperts")
_QUANTIZED_GEMMS = ("Fp8Linear", "Fp8LinearAdd", *FP8_EXPERTS)


class Finding(BaseModel):
    """One thing the lint saw. An error stops the export; a warning goes into the report."""

    rule: str
    severity: Literal["error", "warning"]
    where: str
    what: str
    hint: str = ""


def lint(model: onnx.ModelProto, config: OneRecConfig, precision: Precision, folder: Path | None = None) -> list[Finding]:
    """Findings about one graph, loaded without its external data; `folder` is where that data lies."""
    rules: list[Callable[[], Iterator[Finding]]] = [
        lambda: _shapes(model),
        lambda: _fp8_consumers(model),
        lambda: _experts(model, config),
        lambda: _topk(model),
        lambda: _quantized_gemms(model, config, precision),
        lambda: _attentions(model, config, precision),
        lambda: _references(model),
        lambda: _external_data(model, folder),
    ]
    return [finding for rule in rules for finding in rule()]


def expected_quantized_gemms(config: OneRecConfig, precision: Precision) -> int:
    """Quantized matrix multiplication nodes in one graph: those of the layout that the precision quantizes."""
    return len(quantized_products(config, precision))


def _operator_nodes(model: onnx.ModelProto, names: Sequence[str] = ()) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN and (not names or node.op_type in names)]


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _shapes(model: onnx.ModelProto) -> Iterator[Finding]:
    known = {v.name for v in (*model.graph.value_info, *model.graph.input, *model.graph.output) if v.type.tensor_type.HasField("shape")}
    known |= {initializer.name for initializer in model.graph.initializer}
    for node in _operator_nodes(model):
        for name in (*node.input, *node.output):
            if name and name not in known:
                yield Finding(rule="shape-missing", severity="error", where=node.name, what=f"no shape is known for '{name}'")


def _fp8_consumers(model: onnx.ModelProto) -> Iterator[Finding]:
    codes = {initializer.name for initializer in model.graph.initializer if initializer.data_type == _FP8}
    for node in model.graph.node:
        wrong = [name for name in node.input if name in codes and not (node.domain == DOMAIN or node.op_type == "DequantizeLinear")]
        for name in wrong:
            yield Finding(
                rule="fp8-consumer",
                severity="error",
                where=node.name,
                what=f"the FP8 constant '{name}' feeds {node.op_type}",
                hint="TensorRT lets FP8 constants feed DequantizeLinear and plugins only",
            )


def _experts(model: onnx.ModelProto, config: OneRecConfig) -> Iterator[Finding]:
    if config.moe is None:
        return
    expected = config.moe.experts + config.moe.shared
    layers = sum(config.is_moe(layer) for layer in range(config.n_layers))
    nodes = _operator_nodes(model, ("MoeExperts", *FP8_EXPERTS))
    if len(nodes) != layers * LEVELS:
        yield Finding(
            rule="expert-missing", severity="error", where="graph", what=f"{len(nodes)} expert nodes instead of {layers * LEVELS}"
        )
    rows = {initializer.name: initializer.dims[0] for initializer in model.graph.initializer if len(initializer.dims)}
    for node in nodes:
        weights = [name for name in node.input if name.endswith((".gate_up", ".down"))]
        found = _attributes(node)["experts"]
        whole = all(rows.get(name, 0) % expected == 0 and rows.get(name, 0) > 0 for name in weights) and len(weights) == 2
        if found != expected or not whole:
            yield Finding(rule="expert-missing", severity="error", where=node.name, what=f"not all {expected} experts are in the weights")


def _topk(model: onnx.ModelProto) -> Iterator[Finding]:
    for node in _operator_nodes(model, ("BeamStep", *ITEM_STEPS, "MoeRoute")):
        largest = max((_attributes(node).get(name, 0) for name in ("width", "kept", "top_k")), default=0)
        if largest > MAX_TOPK:
            yield Finding(
                rule="topk-limit",
                severity="error",
                where=node.name,
                what=f"top-k of {largest} exceeds TensorRT's {MAX_TOPK} in a native build",
                hint="reduce export.beam in the recipe",
            )


def _quantized_gemms(model: onnx.ModelProto, config: OneRecConfig, precision: Precision) -> Iterator[Finding]:
    expected, quantized = quantized_products(config, precision), _operator_nodes(model, _QUANTIZED_GEMMS)
    for node in _operator_nodes(model, _UNQUANTIZED_GEMMS):
        if node.name in expected:
            yield Finding(rule="gemm-not-quantized", severity="error", where=node.name, what=f"{node.op_type} runs in FP16, not in FP8")
    for node in quantized:
        if node.name not in expected:
            yield Finding(rule="gemm-quantized", severity="error", where=node.name, what=f"{node.op_type} runs in FP8, not in FP16")
    if len(expected) != len(quantized):
        what = f"{len(quantized)} of {len(expected)} matrix products are in FP8"
        yield Finding(rule="gemm-not-quantized", severity="error", where="graph", what=what)
    types = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    for node in _operator_nodes(model, _QUANTIZED_GEMMS):
        if not any(types.get(name) == _FP8 for name in node.input):
            yield Finding(rule="gemm-not-quantized", severity="error", where=node.name, what="its weight is not stored in FP8")


def _attentions(model: onnx.ModelProto, config: OneRecConfig, precision: Precision) -> Iterator[Finding]:
    """Attention to the context, which a recipe may keep in FP16 in some blocks."""
    expected = {f"step{step}.{attention_place(block)}" for step in range(LEVELS) for block in fp8_attention(config, precision)}
    for node in _operator_nodes(model, ("ContextAttention", "ContextAttentionFp8")):
        if node.op_type == "ContextAttention" and node.name in expected:
            yield Finding(rule="attention-not-quantized", severity="error", where=node.name, what="it runs in FP16, not in FP8")
        if node.op_type == "ContextAttentionFp8" and node.name not in expected:
            yield Finding(rule="attention-quantized", severity="error", where=node.name, what="it runs in FP8, not in FP16")


def _references(model: onnx.ModelProto) -> Iterator[Finding]:
    functions = {(function.domain, function.name) for function in model.functions}
    for op_type in sorted({node.op_type for node in _operator_nodes(model)}):
        if (DOMAIN, op_type) not in functions:
            yield Finding(rule="reference-missing", severity="error", where=op_type, what="the operator has no function in the file")


def _external_data(model: onnx.ModelProto, folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        return
    for initializer in model.graph.initializer:
        place = {entry.key: entry.value for entry in initializer.external_data}
        if not place:
            continue
        path = folder / place["location"]
        end = int(place["offset"]) + int(place["length"])
        if not path.is_file() or path.stat().st_size < end:
            yield Finding(rule="weights-missing", severity="error", where=initializer.name, what=f"{path.name} does not reach byte {end}")
