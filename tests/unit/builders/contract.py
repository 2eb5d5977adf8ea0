"""Contracts for graphs that no exporter wrote."""

from __future__ import annotations

import onnx
from onerec_trt.core.graph_io import METADATA_KEY, GraphIO, GraphTensor, Role

ROLES = {
    "features": Role.CONTEXT_FEATURES,
    "lengths": Role.PATHWAY_LENGTHS,
    "sids": Role.FOUND_ITEMS,
    "scores": Role.ITEM_SCORES,
}


def with_contract(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which says what its inputs and outputs are: a first axis without a size is the batch, a second the context."""
    inputs, outputs = (tuple(map(_tensor, values)) for values in (model.graph.input, model.graph.output))
    io = GraphIO(inputs=inputs, outputs=outputs, min_context=2)
    onnx.helper.set_model_props(model, {METADATA_KEY: io.model_dump_json()})
    return model


def _tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else ("batch", "context")[axis] for axis, dim in enumerate(kind.shape.dim)]
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return GraphTensor.model_validate({"name": value.name, "role": ROLES.get(value.name), "dtype": dtype, "axes": sizes})
