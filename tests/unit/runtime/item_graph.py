"""A graph of three beam steps over constant logits, which follows a catalogue: all of a serving graph but the model."""

from __future__ import annotations

import numpy as np
from onerec_trt.core.graph_io import METADATA_KEY, GraphIO
from onerec_trt.core.recipe import ExportOptions
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.export.serving import effective_widths
from onerec_trt.operators.operator import DOMAIN
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports
from onerec_trt.operators.single_node import IR_VERSION
from onnx import ModelProto, TensorProto, helper, numpy_helper

KINDS = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def item_graph(codebook: int, width: int, capacity: int, excluded: int = 8, classes: int = 40) -> ModelProto:
    """Logits are those of `level_logits`, the same for every request and beam."""
    options = ExportOptions(items="catalogue", item_capacity=capacity, max_excluded=excluded, category_classes=classes)
    sizes = ItemSizes.of(options, codebook)
    assert sizes is not None
    widths = effective_widths((width,) * 3, codebook)
    io = item_serving_io(3, widths[-1], sizes)
    nodes = [
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        helper.make_node("Shape", ["lengths"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "one"], ["batch_one"], axis=0),
        helper.make_node("Constant", [], ["nothing"], value_float=0.0),
        helper.make_node("Expand", ["nothing", "batch_one"], ["scores0"]),
    ]
    index = {1: ["first_classes"], 2: ["pair_bits", "pair_ranks", "pair_classes"], 3: ["pair_bits", "pair_ranks", "pair_rows", "entries"]}
    codes: list[str] = []
    for level in (1, 2, 3):
        rules = ["limits", "allowed", *(["excluded"] if level == 3 else [])]
        kept = widths[level - 1]
        nodes += [
            helper.make_node("Size", [f"scores{level - 1}"], [f"rows{level}"]),
            helper.make_node("Reshape", [f"rows{level}", "one"], [f"count{level}"]),
            helper.make_node("Constant", [], [f"v{level}"], value_ints=[codebook]),
            helper.make_node("Concat", [f"count{level}", f"v{level}"], [f"shape{level}"], axis=0),
            helper.make_node("Expand", [f"logits{level}", f"shape{level}"], [f"all{level}"]),
            helper.make_node(
                f"BeamStepItems{level}",
                [f"all{level}", f"scores{level - 1}", *codes, *index[level], *rules],
                [f"scores{level}", f"parent{level}", f"code{level}"],
                domain=DOMAIN,
                width=kept,
            ),
            *(helper.make_node("GatherElements", [code, f"parent{level}"], [f"{code}_{level}"], axis=1) for code in codes),
        ]
        codes = [*(f"{code}_{level}" for code in codes), f"code{level}"]
    nodes += [
        helper.make_node("Less", ["code3", "zero"], ["none"]),
        helper.make_node("Constant", [], ["minus_one"], value_int=-1),
        *(helper.make_node("Where", ["none", "minus_one", code], [f"{code}_real"]) for code in codes),
        *(helper.make_node("Unsqueeze", [f"{code}_real", "last"], [f"{code}_column"]) for code in codes),
        helper.make_node("Concat", [f"{code}_column" for code in codes], ["sids"], axis=-1),
        helper.make_node("Identity", ["scores3"], ["scores"]),
    ]
    graph = helper.make_graph(nodes, "items", _values(io.inputs), _values(io.outputs), _initializers(codebook))
    operators = [OPERATORS[f"BeamStepItems{level}"] for level in (1, 2, 3)]
    model = helper.make_model(graph, opset_imports=opset_imports(), functions=functions_of(operators), ir_version=IR_VERSION)
    helper.set_model_props(model, {METADATA_KEY: io.model_dump_json()})
    return model


def level_logits(codebook: int) -> np.ndarray:
    """FP16 [3, V]."""
    return np.random.default_rng(5).normal(size=(3, codebook)).astype(np.float16)


def _initializers(codebook: int) -> list[TensorProto]:
    return [numpy_helper.from_array(row[None], f"logits{level + 1}") for level, row in enumerate(level_logits(codebook))]


def _values(tensors: GraphIO.inputs) -> list:
    return [helper.make_tensor_value_info(each.name, KINDS[each.dtype], list(each.axes)) for each in tensors]
