"""Inlining: functions are written out, external data stays where it is, bad files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onerec_trt.builders.functions import all_nodes, inline_functions, load_graph
from onerec_trt.core.errors import BuildError

Make = Callable[..., onnx.ModelProto]


def test_a_function_used_twice_is_written_out_twice(make_model: Make, export: Callable[[onnx.ModelProto], Path]) -> None:
    inlined = inline_functions(load_graph(export(make_model()) / "model.onnx"))
    assert [node.op_type for node in inlined.graph.node].count("Add") == 2
    assert not inlined.functions
    assert {opset.domain for opset in inlined.opset_import} == {""}
    names = [node.name for node in inlined.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_body_is_named_after_its_call(make_model: Make) -> None:
    model = make_model()
    first, second = (node for node in model.graph.node if node.op_type == "Double")
    first.name, second.name = "step0.first", "step0.second"
    model.functions[0].node.insert(0, onnx.helper.make_node("Twice", ["a"], ["c"], domain="onerec"))
    model.functions[0].node[1].input[0] = "c"
    inner = [onnx.helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [onnx.helper.make_opsetid("", 21)]
    model.functions.append(onnx.helper.make_function("onerec", "Twice", ["a"], ["b"], inner, opsets))
    model.functions[0].opset_import.append(onnx.helper.make_opsetid("onerec", 1))
    names = [node.name for node in inline_functions(model).graph.node if node.op_type == "Add"]
    assert names == ["step0.first/Add", "step0.first/Add_1", "step0.second/Add", "step0.second/Add_1"]


def test_the_values_do_not_change(make_model: Make) -> None:
    model = make_model(fp8=False)
    features_BSF = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float16)
    feed = {"features": features_BSF, "lengths": np.ones((2, 3), np.int64)}
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(["scores"], feed)[0]
        for m in (model, inline_functions(model))
    )
    np.testing.assert_array_equal(before, after)
    assert np.abs(before).max() > 0


def test_external_data_is_not_read(make_model: Make, export: Callable[[onnx.ModelProto], Path]) -> None:
    folder = export(make_model())
    (folder / "weights.data").unlink()
    weight = next(i for i in inline_functions(load_graph(folder / "model.onnx")).graph.initializer if i.name == "weight")
    assert weight.data_location == onnx.TensorProto.EXTERNAL
    assert not weight.raw_data


def test_nodes_inside_bodies_are_found() -> None:
    inner = onnx.helper.make_node("Strange", [], ["b"], domain="other")
    body = onnx.helper.make_graph([inner], "body", [], [onnx.helper.make_tensor_value_info("b", 1, [1])])
    outer = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = onnx.helper.make_graph([outer], "g", [], [])
    assert [node.op_type for node in all_nodes(graph)] == ["If", "Strange", "Strange"]


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\xff no model", None])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError) as caught:
        load_graph(path)
    assert str(path) in str(caught.value)
    assert "onerec-trt export" in caught.value.hint
