"""The exported files in ONNX Runtime against the serving graph in PyTorch, at other shapes than were traced."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onerec_trt.core.errors import ExportError
from onerec_trt.core.precision import PRECISIONS
from onerec_trt.core.recipe import ExportOptions
from onerec_trt.export.lint import lint
from onerec_trt.export.stage import DESCRIPTION_FILE, SCORING_FILE, SERVING_FILE, Description, write_graphs
from onerec_trt.models.beam_search import path_log_probabilities
from onerec_trt.models.config import parse_config
from onerec_trt.operators.operator import DOMAIN

SHAPES = [[[1, 0, 0]], [[2, 3, 4]], [[1, 2, 3], [0, 0, 7], [2, 0, 0], [0, 0, 0], [3, 3, 3]]]  # traced: 2 requests, 4 tokens
FP16_NOISE = 0.02  # nat, as in test_serving.py


@pytest.mark.parametrize("lengths", SHAPES, ids=["one-token", "one-request", "five-requests"])
def test_fp16_beams_equal_those_of_torch(exported, make_batch, config, lengths):
    export, batch = exported("fp16"), make_batch(config, lengths)
    sids, scores = export.run(batch)
    with torch.no_grad():
        expected_sids, expected_scores = export.serving(*batch)
    assert sids.shape == tuple(expected_sids.shape)
    assert np.abs(scores - expected_scores.numpy()).max() < FP16_NOISE
    assert (sids == expected_sids.numpy()).all(-1).mean() > 0.8, "only neighbors within FP16 noise may change places"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", SHAPES, ids=["one-token", "one-request", "five-requests"])
def test_scoring_scores_equal_those_of_torch(exported, make_batch, config, precision, lengths):
    """Fed the same paths. In FP8 single codes flip, and results drift apart as far as two independent roundings may: sqrt(2) x noise."""
    export, batch = exported(precision), make_batch(config, lengths)
    sids = torch.randint(0, config.codebook, (len(lengths), export.description.paths, 3))
    actual = export.run_scoring(batch, sids)
    with torch.no_grad():
        expected = export.scoring(*batch, sids).numpy()
    exact = path_log_probabilities(export.model, batch.features.float(), batch.lengths, sids).numpy()
    noise = np.abs(expected - exact).mean()
    assert np.abs(actual - expected).mean() < (FP16_NOISE / 4 if precision == "fp16" else 2**0.5 * noise)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scoring_scores_of_found_beams_are_the_beam_scores(exported, make_batch, config, precision):
    export, batch = exported(precision), make_batch(config, SHAPES[-1])
    sids, scores = export.run(batch)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert export.run_scoring(batch, sids).sum(-1) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_padding_and_empty_contexts(exported, make_batch, config, precision):
    """NaN in the padding, which an empty context consists of, changes no bit of any request."""
    export, batch = exported(precision), make_batch(config, SHAPES[-1])
    padding = torch.arange(batch.features.shape[1]) >= batch.lengths.sum(1, keepdim=True)
    dirty = batch._replace(features=torch.where(padding[..., None], torch.nan, batch.features))
    assert padding[3].all()
    for clean, filled in zip(export.run(batch), export.run(dirty), strict=True):
        assert np.isfinite(clean).all()
        assert np.array_equal(clean, filled)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bad_request_leaves_its_neighbors_bit_identical(exported, make_batch, config, precision):
    export, batch = exported(precision), make_batch(config, SHAPES[-1])
    features = batch.features.clone()
    features[1, 0, 0] = float("nan")
    sids, scores = export.run(batch._replace(features=features))
    clean_sids, clean_scores = export.run(batch)
    assert np.array_equal(np.delete(clean_scores, 1, 0), np.delete(scores, 1, 0))
    assert np.array_equal(np.delete(clean_sids, 1, 0), np.delete(sids, 1, 0))
    assert np.isnan(scores[1]).all()
    assert 0 <= sids[1].min() <= sids[1].max() < config.codebook


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [SERVING_FILE, SCORING_FILE])
def test_fp8_constants_feed_operators_and_inlined_only_dequantization(exported, precision, name):
    model = exported(precision).proto(name)
    codes = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    assert bool(codes) is (precision != "fp16")
    assert {node.domain for node in model.graph.node if codes & {*node.input}} <= {DOMAIN}
    inlined = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in inlined.graph.node} == {""}
    assert {node.op_type for node in inlined.graph.node if codes & {*node.input}} == ({"DequantizeLinear"} if codes else set())
    assert not [node for node in inlined.graph.node if node.op_type == "Cast" and any(a.name == "to" and a.i == 17 for a in node.attribute)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [SERVING_FILE, SCORING_FILE])
def test_files_are_valid_and_lint_free(exported, precision, name):
    export = exported(precision)
    onnx.checker.check_model(str(export.folder / name))
    assert lint(export.proto(name), export.packed.config, export.packed.scheme, export.folder) == []


def test_inputs_and_outputs_are_named_typed_and_dynamic(exported):
    graph = exported("fp8-paper").proto().graph
    described = {v.name: (v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in
                 (*graph.input, *graph.output)}  # fmt: skip
    half, whole, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert described == {
        "features": (half, ["batch", "context", 27]),
        "lengths": (whole, ["batch", 3]),
        "sids": (whole, ["batch", 16, 3]),
        "scores": (single, ["batch", 16]),
    }


def test_description_says_what_was_written(exported):
    export = exported("fp8-paper")
    written = Description.model_validate(json.loads((export.folder / DESCRIPTION_FILE).read_text()))
    assert written == export.description
    assert (written.widths, written.paths, written.feature_width) == ([4, 8, 16], 16, 27)
    assert written.quantized_gemms == 3 * (2 * 4 + 2 + 1)
    assert written.nodes["onerec.MoeExpertsFp8Block"] == 3


def test_fault_found_by_the_lint_stops_the_export(make_model, make_packed, tmp_path):
    """A beam of 4000, which no recipe can ask for, needs a top-k that TensorRT does not have."""
    config = parse_config({"d_model": 32, "n_layers": 1, "n_heads": 1, "d_head": 32, "embed_dim": 4, "codebook": 4000, "ffn_hidden": 32})
    packed = make_packed(make_model(config), "fp16")
    with pytest.raises(ExportError, match="top-k of 4000") as caught:
        write_graphs(packed, ExportOptions().model_copy(update={"beam": (4000, 2, 2)}), tmp_path)
    assert "beam" in caught.value.hint
    assert not (tmp_path / DESCRIPTION_FILE).exists()


def test_the_serving_graph_alone_is_that_of_both(exported, tmp_path):
    export = exported("fp16")
    description = write_graphs(export.packed, ExportOptions(beam=export.serving.widths), tmp_path, scoring=False)
    assert description.io == {SERVING_FILE: export.description.io[SERVING_FILE]}
    assert not (tmp_path / SCORING_FILE).exists()
    both, alone = (onnx.load(folder / SERVING_FILE, load_external_data=False) for folder in (export.folder, tmp_path))
    assert [node.name for node in alone.graph.node] == [node.name for node in both.graph.node]
    assert [function.name for function in alone.functions] == [function.name for function in both.functions]
