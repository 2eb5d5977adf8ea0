"""Block scales written out give the same bits, and leave nothing that TensorRT 10.6 refuses."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onerec_trt.builders.block_scales import without_block_scales
from onnx import TensorProto, helper, numpy_helper

N, K, BLOCK = 6, 32, 16


def _model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    codes = (rng.standard_normal((N, K)) * 50).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.random((N, K // BLOCK)).astype(np.float32) + 0.01
    constants = [
        helper.make_tensor("codes", TensorProto.FLOAT8E4M3FN, (N, K), codes.tobytes(), raw=True),
        numpy_helper.from_array(scale, "scale"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], name="layer/DequantizeLinear", axis=1, block_size=BLOCK),
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"], name="layer/MatMul"),
    ]
    x, y, weight = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["B", K]), ("y", ["B", N]), ("weight", [N, K]))
    )
    graph = helper.make_graph(nodes, "g", [x], [y, weight], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)})


def test_the_values_stay_the_same() -> None:
    model, expected = _model(), _run(_model())
    without_block_scales(model)
    onnx.checker.check_model(model)
    dequantized = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert [len(node.attribute) for node in dequantized] == [0]
    for actual, before in zip(_run(model), expected, strict=True):
        np.testing.assert_array_equal(actual, before)
    assert np.abs(expected[0]).max() > 0


def test_a_weight_used_twice_is_written_out_twice() -> None:
    model = _model()
    second = onnx.NodeProto()
    second.CopyFrom(model.graph.node[0])
    second.name, second.output[0] = "step1/DequantizeLinear", "again"
    model.graph.node.append(second)
    without_block_scales(model)
    onnx.checker.check_model(model)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


def test_codes_in_external_data_are_not_read(tmp_path: Path) -> None:
    onnx.save(_model(), str(tmp_path / "model.onnx"), save_as_external_data=True, location="weights.data", size_threshold=0)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    (tmp_path / "weights.data").unlink()
    without_block_scales(model)
    assert [node.op_type for node in model.graph.node].count("Mul") == 1
