"""Operators with a kernel become plugin nodes in their place; everything else is built as without plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onerec_trt.builders.functions import load_graph
from onerec_trt.builders.kernel_programs import Kernels, use_kernels
from onerec_trt.builders.native_graph import NativeGraph, prepare
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import Profile
from onerec_trt.operators.kernels.registry import KernelFactory
from onerec_trt.operators.launch.encoding import encode
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import InputType, Program, Tensor, dim

from .operator_graph import SCALE, STEPS, WEIGHT, WIDTH, fp8_linear, norm, operator_graph

PROFILES = [Profile(batch=(1, 4, 8), context=(2, 16, 32))]
NATIVE = [f"{name}/MatMul" for name in STEPS]
Factories = Mapping[str, KernelFactory]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return operator_graph(tmp_path / "exported")


@pytest.fixture
def build(source: Path) -> Callable[[Factories], NativeGraph]:
    def make(factories: Factories) -> NativeGraph:
        return prepare(source, PROFILES, kernels=Kernels(factories, "9.0"))

    return make


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _plugins(graph: NativeGraph) -> list[onnx.NodeProto]:
    return [node for node in graph.model.graph.node if node.op_type == "KernelProgram"]


def test_without_kernels_the_graph_is_the_native_one(source: Path, build: Callable[[Factories], NativeGraph]) -> None:
    native, empty = prepare(source, PROFILES), build({})
    assert empty == native
    assert native.gemms.in_fp8 == tuple(NATIVE)
    assert _plugins(native) == []


def test_a_node_keeps_its_place_and_counts_as_fp8(build: Callable[[Factories], NativeGraph], source: Path) -> None:
    graph = build({"Fp8Linear": KernelFactory(fp8_linear)})
    assert graph.gemms.in_fp8 == STEPS
    assert graph.gemms.dequantized == ()
    first, second = _plugins(graph)
    assert (first.name, list(first.output)) == (STEPS[0], ["q0"])
    assert list(first.input)[2:] == list(second.input)[2:] == [WEIGHT, SCALE]
    types = (
        InputType("float8_e4m3fn", (None, None, WIDTH)),
        InputType("float32", (None, None, 1)),
        InputType("float8_e4m3fn", (WIDTH, WIDTH)),
        InputType("float32", (WIDTH,)),
    )
    expected = encode(fp8_linear(Node("Fp8Linear", types, {"promotion": 0}, "9.0")))
    assert _attributes(first) == {"program": expected, "plugin_version": b"1", "plugin_namespace": b""}
    assert [(node.name, node.operator, node.kernels) for node in graph.kernel_nodes] == [(s, "Fp8Linear", ("fp8_linear",)) for s in STEPS]
    assert graph.source == source


def test_factories_see_the_node(build: Callable[[Factories], NativeGraph]) -> None:
    seen: list[Node] = []

    def watch(node: Node) -> None:
        seen.append(node)

    graph = build({"RmsNormQuantRow": KernelFactory(watch)})  # no kernel after all
    assert _plugins(graph) == []
    node, _again = seen  # all kernels are compiled at once, so factories are asked twice
    assert (node.operator, node.capability, node.read) == ("RmsNormQuantRow", "9.0", (True, True, False))
    assert node.constant == (False, True), "features, and the weight of the norm"
    assert node.attributes == {"epsilon": pytest.approx(1e-6)}


def test_codes_of_a_kernel_feed_native_products(build: Callable[[Factories], NativeGraph]) -> None:
    graph = build({"RmsNormQuantRow": KernelFactory(norm)})
    assert graph.gemms.in_fp8 == tuple(NATIVE)
    (plugin,) = _plugins(graph)
    assert list(plugin.output) == ["n.0", "n.1"]  # nobody reads the norm itself
    assert not graph.kernel_nodes[0].product


def _refusing(node: Node) -> Program:
    raise BuildError("K must be a multiple of 16", hint="pad it")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (KernelFactory(_refusing), r"kernel of Fp8Linear does not fit: K must be a multiple of 16"),
        (KernelFactory(lambda node: replace(fp8_linear(node), inputs=node.inputs[:3])), "its program takes"),
        (KernelFactory(lambda node: replace(fp8_linear(node), inputs=(node.inputs[1], *node.inputs[1:]))), "its program takes float32"),
        (
            KernelFactory(lambda node: replace(fp8_linear(node), inputs=(InputType("float8_e4m3fn", (4, None, WIDTH)), *node.inputs[1:]))),
            r"takes float8_e4m3fn \[4, 'any', 64\]",
        ),
        (KernelFactory(lambda node: replace(fp8_linear(node), outputs=(Tensor("float32", (dim(0, 0), 1, 1)),))), "float32 of 3 dimensions"),
        (KernelFactory(lambda node: replace(fp8_linear(node), outputs=fp8_linear(node).outputs * 2)), "2 outputs"),
    ],
)
def test_a_kernel_that_does_not_fit_is_refused(build: Callable[[Factories], NativeGraph], factory: KernelFactory, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        build({"Fp8Linear": factory})
    assert STEPS[0] in caught.value.where


def test_an_output_that_is_read_cannot_be_left_out(build: Callable[[Factories], NativeGraph]) -> None:
    with pytest.raises(BuildError, match="has 1 outputs"):
        build(
            {
                "RmsNormQuantRow": KernelFactory(
                    lambda node: replace(norm(node), outputs=norm(node).outputs[:1], variants=norm(node).variants)
                )
            }
        )


def test_a_type_that_no_kernel_takes_is_refused(source: Path) -> None:
    model = load_graph(source)
    value = next(each for each in model.graph.value_info if each.name == "n.0")
    value.type.tensor_type.elem_type = onnx.TensorProto.BOOL
    with pytest.raises(BuildError, match=r"'n\.0' is BOOL, which no kernel takes"):
        use_kernels(model, Kernels({"Fp8Linear": KernelFactory(fp8_linear)}, "9.0"))


def test_a_graph_that_does_not_say_its_types(source: Path) -> None:
    model = load_graph(source)
    del model.graph.value_info[:]
    with pytest.raises(BuildError, match=r"does not say the type and shape of 'n\.0'"):
        use_kernels(model, Kernels({"Fp8Linear": KernelFactory(fp8_linear)}, "9.0"))
