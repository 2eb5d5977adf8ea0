"""Experts that are fused with the norm of the next block, in a model with two blocks of them: each node against its parts."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.recipe import PrecisionName
from onerec_trt.export.graph import export_graph
from onerec_trt.export.passes import attach_functions
from onerec_trt.export.serving import ServingModel
from onerec_trt.models.config import parse_config
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.operator import Call, recorded_calls
from onerec_trt.validation.fused_parity import fused_calls
from onerec_trt.validation.operator_parity import _compare

SIZE = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_head": 32, "embed_dim": 16, "codebook": 32, "ffn_hidden": 128}
CONFIG = parse_config({**SIZE, "moe": {"experts": 3, "top_k": 2, "hidden": 128, "shared": 1, "dense_layers": 0}})
BLOCK = "step1.blocks.0.ffn.experts"
FUSED: dict[PrecisionName, str] = {
    "fp16": "MoeExpertsRmsNorm",
    "fp8-static": "MoeExpertsFp8TensorRmsNormQuantTensor",
    "fp8-row": "MoeExpertsFp8RowRmsNormQuantRow",
    "fp8-row-block": "MoeExpertsFp8RowBlockRmsNormQuantRow",
    "fp8-paper": "MoeExpertsFp8BlockRmsNormQuantRow",
}


def called(precision: PrecisionName, folder: Path) -> tuple[onnx.ModelProto, list[Call]]:
    """The exported graph of a random model, and the calls of one run."""
    amax = {target.group: 1.0 for target in quantized_targets(CONFIG, precision)}
    random_quantized_checkpoint(CONFIG, precision, folder / "quantized", 0, amax)
    serving = ServingModel(open_quantized(folder / "quantized"), (4, 4, 4)).eval()
    example = torch.zeros(2, 4, CONFIG.feature_width).half(), torch.tensor([[1, 1, 2], [1, 2, 0]])
    graph = export_graph(serving, serving.io, example)
    attach_functions(graph)
    torch.manual_seed(0)
    with torch.no_grad(), recorded_calls() as calls:
        serving(torch.randn(2, 4, CONFIG.feature_width).half(), example[1])
    return ir.to_proto(graph), calls


@pytest.mark.parametrize("precision", FUSED)
def test_experts_and_norm_are_the_composition_of_the_models_own_calls(tmp_path: Path, precision: PrecisionName) -> None:
    exported, calls = called(precision, tmp_path)
    graph, fused = fused_calls(exported, calls)
    made = {call.label: call for call in fused if call.operator.name in PAIRS}
    assert set(made) == {f"step{step}.blocks.0.ffn.experts" for step in range(3)}, "the norm before the head stays apart"
    assert {call.operator.name for call in made.values()} == {FUSED[precision]}
    by_label = {call.label: call for call in calls}
    parts = by_label[BLOCK], by_label["step1.blocks.1.cross.norm"]
    assert all(one is two for one, two in zip(made[BLOCK].outputs, (*parts[0].outputs, *parts[1].outputs), strict=True))
    results = [_compare(call, graph) for call in made.values()]
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("precision", ["fp16", "fp8-row"])
def test_a_fusion_that_takes_the_wrong_weight_of_the_norm_fails(tmp_path: Path, precision: PrecisionName) -> None:
    """The norm is judged beside the sum at hand, and what the model made of its own sum beside that."""
    exported, calls = called(precision, tmp_path)
    graph, fused = fused_calls(exported, calls)
    (call,) = [each for each in fused if each.label == BLOCK]
    assert _compare(call, graph).passed
    other = call._replace(inputs=(*call.inputs[:-1], call.inputs[-1] * torch.linspace(0.5, 1.5, SIZE["d_model"]).half()))
    assert not _compare(other, graph).passed
