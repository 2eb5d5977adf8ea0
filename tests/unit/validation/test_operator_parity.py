"""Gate 1 on a real exported file: it passes as exported, and names what was corrupted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onerec_trt.builders.fusions.fusion import FusedNode, Fusion, fuse
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.recipe import Recipe
from onerec_trt.export.serving import ServingModel
from onerec_trt.export.stage import SERVING_FILE
from onerec_trt.export.weights import WEIGHTS_FILE
from onerec_trt.models.requests import Requests
from onerec_trt.operators.operator import FP8_THRESHOLD
from onerec_trt.tools.pipeline import folders_of, reference_job_of
from onerec_trt.validation import fused_parity
from onerec_trt.validation.fp32_reference import heldout_requests
from onerec_trt.validation.gates import Gate
from onerec_trt.validation.operator_parity import OperatorResult, _explanation, operator_gates, operator_results, weight_gate


@pytest.fixture(scope="module")
def recipe(finished_recipe: Callable[[str], Recipe]) -> Recipe:
    return finished_recipe("fp8-row")


@pytest.fixture(scope="module")
def serving(recipe: Recipe) -> ServingModel:
    return ServingModel(open_quantized(folders_of(recipe).calibrated), recipe.export.beam).eval()


@pytest.fixture(scope="module")
def few(recipe: Recipe) -> Requests:
    return heldout_requests(reference_job_of(recipe)).select(slice(2))


@pytest.fixture
def graph(recipe: Recipe) -> onnx.ModelProto:
    return onnx.load(folders_of(recipe).exported / SERVING_FILE, load_external_data=False)


@pytest.fixture
def exported(recipe: Recipe, tmp_path: Path) -> Path:
    shutil.copytree(folders_of(recipe).exported, tmp_path / "exported")
    return tmp_path / "exported"


def corrupt(graph: onnx.ModelProto, function: str, factor: float) -> None:
    """Multiply the first floating-point constant in the body of one function."""
    (body,) = [f for f in graph.functions if f.name == function]
    for node in body.node:
        for attribute in node.attribute:
            if attribute.name == "value_float":
                attribute.f *= factor
                return
    raise AssertionError(f"{function} has no constant")


def gates_of(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> dict[str, Gate]:
    return {gate.name: gate for gate in operator_gates("fp8-row", operator_results(serving, graph, few, len(few)))}


def test_every_operator_node_is_compared_and_passes(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> None:
    results = operator_results(serving, graph, few, len(few))
    nodes = {node.name: node.op_type for node in graph.graph.node if node.domain == "onerec"}
    assert {result.label: result.operator for result in results if " with " not in result.label} == nodes
    with_edges = {"BeamSelfAttention1", "BeamSelfAttention2", "BeamStep", "ContextAttention", "ContextFeatures", "ContextNorm", "MoeRoute"}
    assert {result.operator for result in results if " with " in result.label} == with_edges
    assert [result for result in results if not result.passed] == []
    assert all(gate.passed for gate in operator_gates("fp8-row", results))


def test_fused_operators_are_compared_with_their_parts(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> None:
    before = graph.SerializeToString()
    plain, fused = (operator_results(serving, graph, few, len(few), fused=fused) for fused in (False, True))
    more = {result.label: result for result in fused if result not in plain}
    assert {(label[: label.index(".")], result.operator) for label, result in more.items()} == {
        ("step0", "SharedContextAttention"),
        ("step1", "SharedContextAttention"),
        ("step2", "SharedContextAttention"),
        ("step1", "BeamSelfAttention1QuantRow"),
        ("step2", "BeamSelfAttention2QuantRow"),
    }
    attentions = {result.label for result in plain if "Attention" in result.operator and " with " not in result.label}
    assert attentions == set(more)
    assert all(result.passed for result in more.values())
    assert {result.threshold for result in more.values() if "Quant" in result.operator} == {FP8_THRESHOLD}
    assert "operator BeamSelfAttention2QuantRow" in {gate.name for gate in operator_gates("fp8-row", fused)}
    assert graph.SerializeToString() == before


def test_a_corrupted_part_fails_what_it_is_fused_into(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> None:
    corrupt(graph, "QuantizeRows", 1e13)  # the least amax becomes 10
    gates = operator_gates("fp8-row", operator_results(serving, graph, few, len(few), fused=True))
    failed = {gate.name for gate in gates if not gate.passed}
    assert failed >= {"operator QuantRow", "operator BeamSelfAttention1QuantRow", "operator BeamSelfAttention2QuantRow"}
    assert "operator BeamSelfAttention1" not in failed


def test_a_fusion_that_takes_the_wrong_input_fails(
    monkeypatch: pytest.MonkeyPatch, serving: ServingModel, graph: onnx.ModelProto, few: Requests
) -> None:
    def confused(model: onnx.ModelProto, fusions: Sequence[Fusion]) -> tuple[FusedNode, ...]:
        made = fuse(model, fusions)
        for node in model.graph.node:
            if node.op_type == "BeamSelfAttention2QuantRow":
                node.input[2] = node.input[0]
        return made

    monkeypatch.setattr(fused_parity, "fuse", confused)
    gates = operator_gates("fp8-row", operator_results(serving, graph, few, len(few), fused=True))
    assert [gate.name for gate in gates if not gate.passed] == ["operator BeamSelfAttention2QuantRow"]


def test_a_corrupted_function_fails_what_uses_it_and_no_other(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> None:
    corrupt(graph, "Fp8Linear32", 1.02)
    gates = gates_of(serving, graph, few)
    failed = {name for name, gate in gates.items() if not gate.passed}
    assert {"operator Fp8Linear", "operator Fp8LinearAdd"} <= failed
    assert failed.isdisjoint({"operator RmsNormQuantRow", "operator ContextAttention", "operator MoeRoute", "operator BeamStep"})
    sentence = gates["operator Fp8Linear"].sentence()
    assert "must be <= 1e-06" in sentence
    assert "worst of 15: step" in sentence
    assert "output_0: largest absolute difference" in sentence


def test_a_function_that_gives_nan_fails(serving: ServingModel, graph: onnx.ModelProto, few: Requests) -> None:
    corrupt(graph, "Fp8Linear32", math.nan)
    gate = gates_of(serving, graph, few)["operator Fp8Linear"]
    assert (gate.passed, gate.value) == (False, None)


def test_the_worst_node_speaks_for_its_type() -> None:
    def result(label: str, difference: float | None) -> OperatorResult:
        passed = difference is not None and difference <= 1e-6
        return OperatorResult(label=label, operator="Linear", difference=difference, threshold=1e-6, passed=passed)

    (gate,) = operator_gates("fp16", [result("a", 1e-9), result("b", 5e-7), result("c", 0.0)])
    assert (gate.passed, gate.value, gate.detail) == (True, 5e-7, "worst of 3: b")
    (gate,) = operator_gates("fp16", [result("a", 1.0), result("b", None)])
    assert (gate.passed, gate.value, gate.detail) == (False, None, "worst of 2: b")


def test_all_weights_of_the_file_are_compared(serving: ServingModel, graph: onnx.ModelProto, recipe: Recipe) -> None:
    gate = weight_gate("fp8-row", serving, graph, folders_of(recipe).exported)
    assert gate.passed
    assert gate.detail == f"{len(dict(serving.named_buffers()))} tensors compared"


@pytest.mark.parametrize("name", ["decoder.heads.2.weight", "decoder.blocks.1.ffn.gate_up"])
def test_a_flipped_bit_in_the_weights_is_found_and_named(serving: ServingModel, graph: onnx.ModelProto, exported: Path, name: str) -> None:
    (initializer,) = [i for i in graph.graph.initializer if i.name == name]
    place = {entry.key: int(entry.value) for entry in initializer.external_data if entry.key != "location"}
    data = np.fromfile(exported / WEIGHTS_FILE, np.uint8)
    data[place["offset"] + place["length"] - 1] ^= 1
    data.tofile(exported / WEIGHTS_FILE)
    gate = weight_gate("fp8-row", serving, graph, exported)
    assert (gate.passed, gate.value) == (False, 1)
    assert gate.detail.endswith(f"first that differs: {name}")


def test_a_weight_that_the_file_lacks_is_found_and_named(serving: ServingModel, graph: onnx.ModelProto, exported: Path) -> None:
    (initializer,) = [i for i in graph.graph.initializer if i.name == "decoder.heads.2.weight"]
    initializer.name = "renamed"
    gate = weight_gate("fp8-row", serving, graph, exported)
    assert (gate.passed, gate.value) == (False, 1)
    assert gate.detail.endswith("first that is missing: decoder.heads.2.weight")


def test_weights_cut_short_fail(serving: ServingModel, graph: onnx.ModelProto, exported: Path) -> None:
    data = (exported / WEIGHTS_FILE).read_bytes()
    (exported / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])
    assert not weight_gate("fp8-row", serving, graph, exported).passed


def test_a_graph_without_the_models_weights_fails(serving: ServingModel, graph: onnx.ModelProto, exported: Path) -> None:
    for initializer in graph.graph.initializer:
        initializer.name = f"renamed.{initializer.name}"
    gate = weight_gate("fp8-row", serving, graph, exported)
    assert (gate.passed, gate.value) == (False, None)


def test_the_explanation_of_a_failure_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    wrong, right = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert "largest absolute difference 1" in _explanation([wrong], [right])
    assert capfd.readouterr().out == ""
