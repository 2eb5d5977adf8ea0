"""What no build can do is said before one starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onerec_trt.builders.functions import inline_functions, load_graph
from onerec_trt.builders.kernel_programs import OP_TYPE
from onerec_trt.builders.preconditions import (
    WRONG_NATIVELY,
    check_capabilities,
    check_graph,
    check_items,
    check_native_operators,
    has_fp8,
)
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import MAX_TOPK, BuildOptions, ExportOptions
from onerec_trt.operators.beam_step_items import LEVEL_OF
from onerec_trt.runtime.tensorrt_api import load
from onnx import TensorProto, helper, numpy_helper

Make = Callable[..., onnx.ModelProto]
ExportBeams = Callable[[str], Path]
STEPS = [f"step{step}.beam" for step in range(3)]


@pytest.mark.parametrize("capability", ["9.0", "10.0", "7.0", "99.9"])
def test_unsupported_capability(capability: str) -> None:
    with pytest.raises(BuildError, match=f"cannot build for compute capability {capability}") as caught:
        check_capabilities(load("tensorrt-rtx"), ("8.9", capability), fp8=False)
    assert "8.9" in caught.value.hint
    assert "TensorRT on a machine" in caught.value.hint


def test_fp8_needs_tensor_cores_for_it() -> None:
    check_capabilities(load("tensorrt-rtx"), ("8.6", "8.9", "12.0"), fp8=False)
    check_capabilities(load("tensorrt-rtx"), ("8.9", "12.0"), fp8=True)
    with pytest.raises(BuildError, match=r"8\.6 has no FP8"):
        check_capabilities(load("tensorrt-rtx"), ("8.6",), fp8=True)


def test_fp8_is_recognized(make_model: Make) -> None:
    assert has_fp8(make_model())
    assert not has_fp8(make_model(fp8=False))


def test_an_operator_without_function_is_named_and_counted(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"onerec::Mystery \(2x\)"):
        check_graph(inline_functions(make_model("Mystery")), tmp_path / "model.onnx")


def _topk(k: int, *, external_in: Path | None = None, as_constant_node: bool = False) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.array([k], np.int64), "k")
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="keep_best")]
    if as_constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["k"], value_ints=[k]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["K"]), helper.make_tensor_value_info("i", TensorProto.INT64, ["K"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [] if as_constant_node else [values])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if external_in is None:
        return model
    onnx.save(model, str(external_in), save_as_external_data=True, location="weights.data", size_threshold=0)
    return onnx.load(str(external_in), load_external_data=False)


@pytest.mark.parametrize("kind", ["initializer", "external", "node"])
def test_topk_beyond_the_limit(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options: dict[str, object] = {"external": {"external_in": path}, "node": {"as_constant_node": True}}.get(kind, {})
    check_graph(_topk(MAX_TOPK, **options), path)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=f"top-{MAX_TOPK + 1}") as caught:
        check_graph(_topk(MAX_TOPK + 1, **options), path)  # type: ignore[arg-type]
    assert "keep_best" in caught.value.where


def test_steps_that_follow_a_catalogue_are_not_built_natively(export_beams: ExportBeams) -> None:
    path = export_beams("catalogue") / "model.onnx"
    model = load_graph(path)
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        check_native_operators(model, path, WRONG_NATIVELY, plugins=False)
    assert caught.value.where == f"{path}, nodes {', '.join(STEPS)}"
    assert "build.plugins: true" in caught.value.hint
    check_native_operators(model, path, (), plugins=False)  # a library that builds them well
    for node in model.graph.node:
        if node.name in STEPS[:2]:
            node.op_type = OP_TYPE
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        check_native_operators(model, path, WRONG_NATIVELY, plugins=True)
    assert caught.value.where == f"{path}, nodes {STEPS[2]}", "its kernel refused it"
    assert "fewer beams" in caught.value.hint
    next(node for node in model.graph.node if node.name == STEPS[2]).op_type = OP_TYPE
    check_native_operators(model, path, WRONG_NATIVELY, plugins=True)


@pytest.mark.parametrize(("items", "graph"), [("open", "model.onnx"), ("open", "scoring.onnx"), ("catalogue", "scoring.onnx")])
def test_graphs_without_such_steps_are_built_natively(export_beams: ExportBeams, items: str, graph: str) -> None:
    path = export_beams(items) / graph
    check_native_operators(load_graph(path), path, WRONG_NATIVELY, plugins=False)


def test_all_steps_that_follow_a_catalogue_are_known() -> None:
    assert set(WRONG_NATIVELY) == set(LEVEL_OF)


def test_a_recipe_says_that_its_build_would_find_wrong_items() -> None:
    catalogue, native = ExportOptions(items="catalogue"), BuildOptions(target="tensorrt")
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        check_items(catalogue, native)
    assert (caught.value.where, "build.plugins: true" in caught.value.hint) == ("build.plugins", True)
    check_items(catalogue, BuildOptions(target="tensorrt", plugins=True))
    check_items(catalogue, BuildOptions())
    check_items(ExportOptions(), native)
