"""External data: E4M3 bytes as packed, one file for both graphs, page-aligned; conflicting names are refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onerec_trt.core.errors import ExportError
from onerec_trt.export.stage import SCORING_FILE, SERVING_FILE
from onerec_trt.export.weights import ALIGNMENT, INLINE_BYTES, WEIGHTS_FILE, externalize

EXPERTS = ("experts.0", "experts.1", "experts.2", "experts.3", "shared.0")
QUANTIZED = ["fp8-static", "fp8-row", "fp8-paper", "fp8-row-block"]


def places(model):
    """Location, offset and length of every external initializer."""
    found = {}
    for initializer in model.graph.initializer:
        place = {entry.key: entry.value for entry in initializer.external_data}
        if place:
            found[initializer.name] = (place["location"], int(place["offset"]), int(place["length"]))
    return found


@pytest.mark.parametrize("precision", QUANTIZED)
def test_file_holds_the_packed_codes_byte_for_byte(exported, precision):
    export = exported(precision)
    raw = (export.folder / WEIGHTS_FILE).read_bytes()
    sources = {
        "decoder.blocks.0.self_qkv.weight": [f"blocks.0.self_attention.{part}.weight" for part in "qkv"],
        "decoder.blocks.0.ffn.gate_up.weight": [f"blocks.0.ffn.{part}.weight" for part in ("gate", "up")],
        "decoder.blocks.1.ffn.down": [f"blocks.1.ffn.{expert}.down.weight" for expert in EXPERTS],
    }
    stored = places(export.proto())
    for name, parts in sources.items():
        _, offset, length = stored[name]
        expected = b"".join(export.packed.tensor(part).contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
        assert raw[offset : offset + length] == expected


@pytest.mark.parametrize("precision", ["fp16", *QUANTIZED])
def test_both_graphs_share_one_aligned_file(exported, precision):
    export = exported(precision)
    serving, scoring = places(export.proto(SERVING_FILE)), places(export.proto(SCORING_FILE))
    shared = serving.keys() & scoring.keys()
    assert {name for name in serving if name.startswith("decoder.")} == {name for name in scoring if name.startswith("decoder.")} <= shared
    assert all(serving[name] == scoring[name] for name in shared)
    spans = sorted({(offset, length) for _, offset, length in (*serving.values(), *scoring.values())})
    assert all(offset % ALIGNMENT == 0 for offset, _ in spans)
    assert all(start + length <= following for (start, length), (following, _) in pairwise(spans)), "no overlap"
    assert sum(length for _, length in spans) == export.description.weight_bytes
    assert (export.folder / WEIGHTS_FILE).stat().st_size == sum(spans[-1])
    assert {location for location, *_ in serving.values()} == {WEIGHTS_FILE}


def test_small_constants_stay_in_the_graph(exported):
    model = exported("fp8-paper").proto()
    external = places(model)
    for initializer in model.graph.initializer:
        size = int(np.prod(initializer.dims)) * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)).itemsize
        assert (initializer.name in external) is (size >= INLINE_BYTES)


def model_with(name, array):
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    node = ir.node("Identity", [value])
    return ir.Model(ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 21}), ir_version=10)


@pytest.mark.parametrize(
    "other", [np.ones((512, 2), np.float32), np.ones(512, np.float64), np.zeros(512, np.float32)], ids=["shape", "type", "content"]
)
def test_two_tensors_under_one_name_are_refused(tmp_path, other):
    with pytest.raises(ExportError, match="different tensors under one name") as caught:
        externalize([model_with("weight", np.ones(512, np.float32)), model_with("weight", other)], tmp_path)
    assert caught.value.where == "weight"


def test_equal_constants_of_two_graphs_are_written_once(tmp_path):
    array = np.arange(512, dtype=np.int64)
    assert externalize([model_with("constant", array), model_with("constant", array.copy())], tmp_path) == array.nbytes


def test_tensor_read_back_is_the_tensor_written(tmp_path):
    array = np.random.default_rng(0).normal(size=(37, 50)).astype(np.float32)
    model = model_with("weight", array)
    assert externalize([model], tmp_path) == array.nbytes
    assert np.array_equal(model.graph.initializers["weight"].const_value.numpy(), array)
