"""Tracing: every sharing of keys and values becomes a graph, and what cannot be traced is an ExportError."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.core.errors import ExportError
from onerec_trt.core.graph_io import GraphIO, GraphTensor
from onerec_trt.export.graph import export_graph
from onerec_trt.export.lint import lint
from onerec_trt.export.passes import attach_functions
from onerec_trt.export.serving import Decoder, ScoringModel, ServingModel
from onerec_trt.export.trace import trace_graphs
from onerec_trt.models.config import parse_config
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from torch import nn

SMALL = {"d_model": 56, "n_heads": 14, "d_head": 4, "embed_dim": 4, "codebook": 8, "ffn_hidden": 16}
IO = GraphIO(
    inputs=(GraphTensor(name="x", role=None, dtype="float32", axes=("batch", 4, 4)),),
    outputs=(GraphTensor(name="y", role=None, dtype="float32", axes=("batch", 4, 4)),),
    min_context=1,
)
LENGTHS = [[1, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize(
    ("n_layers", "l_kv", "s_kv", "g_kv"),
    [(1, 1, 1, 14), (1, 1, 2, 7), (3, 3, 1, 2), (4, 2, 1, 1)],
)
def test_every_sharing_exports(make_model, make_packed, make_batch, n_layers, l_kv, s_kv, g_kv):
    config = parse_config(SMALL | {"n_layers": n_layers, "l_kv": l_kv, "s_kv": s_kv, "g_kv": g_kv})
    packed = make_packed(make_model(config), "fp16")
    module = ScoringModel(Decoder(packed), 2).eval()
    graph = export_graph(module, module.io, (*make_batch(config, LENGTHS), torch.zeros(2, 2, 3).long()))
    attach_functions(graph)
    assert lint(ir.to_proto(graph), config, packed.scheme) == []
    assert sum(node.op_type == "ContextNorm" for node in graph.graph) == l_kv * s_kv
    read = [node.inputs[1].name for node in graph.graph if node.op_type == "ContextAttention"]
    assert read == [f"context.key_norm_{config.kv_set(layer)}.0" for layer in range(n_layers)] * 3


def test_attention_kept_in_fp16_exports_beside_attention_in_fp8(make_model, make_packed, make_batch, config):
    config = config.with_changes(moe=None, l_kv=1)  # without near-ties of a router; one set in both forms
    packed = make_packed(make_model(config), "fp8-paper-attention")
    packed = replace(packed, scheme=replace(packed.scheme, keep_fp16=("blocks.0.cross.attention",)))
    module = ScoringModel(Decoder(packed), 2).eval()
    batch = make_batch(config, LENGTHS)
    graph = export_graph(module, module.io, (*batch, sids := torch.zeros(2, 2, 3).long()))
    attach_functions(graph)
    assert lint(ir.to_proto(graph), config, packed.scheme) == []
    otherwise = replace(packed.scheme, keep_fp16=("blocks.1.cross.attention",))
    findings = {(finding.rule, finding.where) for finding in lint(ir.to_proto(graph), config, otherwise)}
    assert findings == {
        (rule, f"step{step}.blocks.{block}.cross.attention")
        for step in range(3)
        for block, rule in enumerate(("attention-not-quantized", "attention-quantized"))
    }
    attentions = {node.name: node.op_type for node in graph.graph if node.op_type.startswith("ContextAttention")}
    for name, kind in attentions.items():
        assert kind == ("ContextAttention" if name.endswith("blocks.0.cross.attention") else "ContextAttentionFp8")
    assert len(attentions) == 3 * config.n_layers
    names = [node.name for node in graph.graph if node.domain == "onerec"]
    assert len(set(names)) == len(names)
    feeds = dict(zip((each.name for each in module.io.inputs), (batch.features, batch.lengths, sids), strict=True))
    (found,) = OnnxRuntimeRunner(ir.to_proto(graph), threads=1)({name: each.numpy() for name, each in feeds.items()}).values()
    with torch.no_grad():
        assert difference(found, module(*batch, sids).numpy()) < 1e-4


def test_operator_nodes_carry_their_place_in_the_model(exported):
    names = [node.name for node in exported("fp8-paper").proto().graph.node if node.domain == "onerec"]
    assert len(set(names)) == len(names)
    assert {"context.features", "context.linear", "step0.blocks.0.cross.q", "step2.blocks.1.ffn.experts", "step1.beam"} <= set(names)


class Branching(nn.Module):
    """Decides on a value: no graph can hold that."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Untranslatable(nn.Module):
    """An operation ONNX does not have."""

    def forward(self, x):
        return torch.linalg.eigvals(x)


@pytest.mark.parametrize("module", [Branching(), Untranslatable()], ids=["branching", "untranslatable"])
def test_what_cannot_be_traced_is_an_export_error(module):
    with pytest.raises(ExportError, match="exporter refused"):
        export_graph(module, IO, (torch.ones(3, 4, 4),))


class Composed(nn.Module):
    """Writes to a tensor, and calls an operator that ONNX has in parts only."""

    def forward(self, x):
        return x.clone().mul_(2) * ((x > 0) & (x < 3))


def test_what_has_to_be_decomposed_is():
    graph = export_graph(Composed(), IO, (torch.ones(3, 4, 4),))
    x = np.linspace(-2, 4, 80, dtype=np.float32).reshape(5, 4, 4)
    (found,) = OnnxRuntimeRunner(ir.to_proto(graph), threads=1)({"x": x}).values()
    np.testing.assert_array_equal(found, x * 2 * ((x > 0) & (x < 3)))


def test_both_graphs_are_traced_once(make_model, make_packed, config, monkeypatch):
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *_: pytest.fail("a trace is traced again"))
    serving = ServingModel(make_packed(make_model(config), "fp16"), (2, 2, 2)).eval()
    assert len(trace_graphs(serving, ScoringModel(serving.decoder, 2).eval())) == 2
