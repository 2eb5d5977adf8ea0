"""A graph is prepared for a native build; a quantized product that would go unnoticed is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from onerec_trt.builders.native_graph import prepare
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import Profile
from onnx import helper

Make = Callable[..., onnx.ModelProto]
PROFILES = [Profile(batch=(1, 4, 8), context=(2, 16, 32))]


def _layer_as_call(make_model: Make, path: Path, *, negated: Sequence[str] = ()) -> Path:
    """The small model whose FP8 layer is the call `step0.q`; an operand `negated` is changed between DequantizeLinear and MatMul."""
    model = make_model()
    kept = [node for node in model.graph.node if node.output[0] not in ("codes", "x", "w", "product")]
    body = [
        helper.make_node("QuantizeLinear", ["features", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], axis=1),
        *(helper.make_node("Neg" if name in negated else "Identity", [name], [f"{name}2"]) for name in ("x", "w")),
        helper.make_node("MatMul", ["x2", "w2"], ["product"]),
    ]
    inputs = ["features", "scale", "zero", "weight", "weight_scale"]
    model.functions.append(helper.make_function("onerec", "Fp8Linear", inputs, ["product"], body, [helper.make_opsetid("", 21)]))
    del model.graph.node[:]
    model.graph.node.extend([helper.make_node("Fp8Linear", inputs, ["product"], name="step0.q", domain="onerec"), *kept])
    onnx.save(model, str(path))
    return path


def test_products_are_named_after_their_call(make_model: Make, tmp_path: Path) -> None:
    graph = prepare(_layer_as_call(make_model, tmp_path / "model.onnx"), PROFILES)
    assert graph.gemms.in_fp8 == ("step0.q/MatMul",)
    assert graph.profiles[0]["features"] == ((1, 2, 64), (4, 16, 64), (8, 32, 64))


def test_a_half_quantized_product_is_seen(make_model: Make, tmp_path: Path) -> None:
    graph = prepare(_layer_as_call(make_model, tmp_path / "model.onnx", negated=["w"]), PROFILES)
    assert (graph.gemms.in_fp8, graph.gemms.dequantized) == ((), ("step0.q/MatMul",))


def test_a_product_that_is_not_recognized_is_refused(make_model: Make, tmp_path: Path) -> None:
    path = _layer_as_call(make_model, tmp_path / "model.onnx", negated=["x", "w"])
    with pytest.raises(BuildError, match=r"1 operators with FP8 weights .* step0\.q") as caught:
        prepare(path, PROFILES)
    assert caught.value.where == str(path)


def test_a_rewrite_changes_the_graph_not_what_it_is_held_against(make_model: Make, tmp_path: Path) -> None:
    def without_products(model: onnx.ModelProto) -> None:
        kept = [node for node in model.graph.node if node.op_type != "MatMul"]
        del model.graph.node[:]
        model.graph.node.extend(kept)

    graph = prepare(_layer_as_call(make_model, tmp_path / "model.onnx"), PROFILES, without_products)
    assert graph.gemms.in_fp8 == ("step0.q/MatMul",)
    assert all(node.op_type != "MatMul" for node in graph.model.graph.node)
