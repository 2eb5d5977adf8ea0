"""Every rule of the lint fires on the fault it is for, and says where."""

from __future__ import annotations

import shutil

import pytest
from onerec_trt.core.precision import PRECISIONS, precision_of
from onerec_trt.core.recipe import MAX_TOPK
from onerec_trt.export.lint import lint
from onerec_trt.export.weights import WEIGHTS_FILE
from onnx import TensorProto, helper


@pytest.fixture
def model(exported):
    return exported("fp8-paper").proto()


@pytest.fixture
def findings(exported):
    """Rules and places of the findings about an edited model."""
    export = exported("fp8-paper")

    def find(model, folder=None):
        found = lint(model, export.packed.config, export.packed.scheme, folder)
        assert all(finding.severity == "error" and finding.what for finding in found)
        return [(finding.rule, finding.where) for finding in found]

    return find


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == name)


def remove(items, unwanted):
    kept = [item for item in items if not unwanted(item)]
    assert len(kept) < len(items)
    del items[:]
    items.extend(kept)


def set_attribute(node, name, value):
    next(attribute for attribute in node.attribute if attribute.name == name).i = value


def test_clean_graph_has_no_findings(model, findings, exported):
    assert findings(model, exported("fp8-paper").folder) == []


def test_missing_shape(model, findings):
    remove(model.graph.value_info, lambda info: info.name == "step0.blocks.0.cross.q.0")
    assert set(findings(model)) == {("shape-missing", "step0.blocks.0.cross.q"), ("shape-missing", "step0.blocks.0.cross.attention")}


def test_fp8_constant_with_a_wrong_consumer(model, findings):
    weight = next(i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT8E4M3FN)
    model.graph.node.append(helper.make_node("Transpose", [weight], ["turned"], name="turn"))
    assert findings(model) == [("fp8-consumer", "turn")]


def test_fp8_constant_may_feed_dequantization(model, findings):
    weight = next(i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT8E4M3FN)
    model.graph.node.append(helper.make_node("DequantizeLinear", [weight, "scale"], ["values"], name="dequantize"))
    assert findings(model) == []


def test_expert_missing_from_a_node(model, findings):
    set_attribute(node_of(model, "step1.blocks.1.ffn.experts"), "experts", 4)
    assert findings(model) == [("expert-missing", "step1.blocks.1.ffn.experts")]


def test_expert_missing_from_the_weights(model, findings):
    weight = next(i for i in model.graph.initializer if i.name == "decoder.blocks.1.ffn.down")
    weight.dims[0] -= 1
    assert findings(model) == [("expert-missing", f"step{step}.blocks.1.ffn.experts") for step in range(3)]


def test_expert_layer_missing(model, findings):
    remove(model.graph.node, lambda node: node.name == "step2.blocks.1.ffn.experts")
    assert set(findings(model)) == {("expert-missing", "graph"), ("gemm-not-quantized", "graph")}


@pytest.mark.parametrize("attribute", ["width", "kept"])
def test_topk_beyond_tensorrt(model, findings, attribute):
    beam = node_of(model, "step1.beam")
    set_attribute(beam, attribute, MAX_TOPK)
    assert findings(model) == []
    set_attribute(beam, attribute, MAX_TOPK + 1)
    assert findings(model) == [("topk-limit", "step1.beam")]


def test_gemm_left_in_fp16(model, findings):
    node = node_of(model, "step1.blocks.0.ffn.down")
    node.op_type = "LinearAdd"
    assert set(findings(model)) == {
        ("gemm-not-quantized", "step1.blocks.0.ffn.down"),
        ("gemm-not-quantized", "graph"),
        ("reference-missing", "LinearAdd"),
    }


def test_weight_not_stored_in_fp8(model, findings):
    name = "decoder.blocks.0.cross_q.weight"
    next(i for i in model.graph.initializer if i.name == name).data_type = TensorProto.FLOAT16
    assert findings(model) == [("gemm-not-quantized", f"step{step}.blocks.0.cross.q") for step in range(3)]


def test_fp16_graph_linted_as_fp8(exported):
    export = exported("fp16")
    found = lint(export.proto(), export.packed.config, PRECISIONS["fp8-row"])
    assert {finding.rule for finding in found} == {"gemm-not-quantized"}
    places = {finding.where for finding in found}
    assert {"graph", "step0.blocks.0.cross.q", "step2.blocks.1.ffn.experts"} <= places
    assert not {"context.linear", "step0.head"} & places, "context and heads stay in FP16"


def test_layers_to_keep_that_are_quantized_all_the_same(exported):
    export = exported("fp8-row")
    found = lint(export.proto(), export.packed.config, precision_of("fp8-row", ["blocks.0.ffn.down"]))
    assert {(finding.rule, finding.where) for finding in found} == {
        *(("gemm-quantized", f"step{step}.blocks.0.ffn.down") for step in range(3)),
        ("gemm-not-quantized", "graph"),
    }


def test_operator_without_reference(model, findings):
    remove(model.functions, lambda function: function.name == "Fp8Linear")
    assert findings(model) == [("reference-missing", "Fp8Linear")]


def test_truncated_and_missing_weights(model, findings, exported, tmp_path):
    folder = exported("fp8-paper").folder
    size = (folder / WEIGHTS_FILE).stat().st_size
    shutil.copy(folder / WEIGHTS_FILE, tmp_path)
    with (tmp_path / WEIGHTS_FILE).open("r+b") as stream:
        stream.truncate(size - 1)
    assert len(findings(model, tmp_path)) == 1
    (tmp_path / WEIGHTS_FILE).unlink()
    missing = findings(model, tmp_path)
    assert {rule for rule, _ in missing} == {"weights-missing"}
    assert len(missing) > 10
