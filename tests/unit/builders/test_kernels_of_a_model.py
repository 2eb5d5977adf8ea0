"""The factories of all operators that have kernels, on the graphs of a small exported model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onerec_trt.builders.block_scales import without_block_scales
from onerec_trt.builders.kernel_programs import Kernels, use_kernels
from onerec_trt.builders.native_graph import prepare
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.recipe import ExportOptions, PrecisionName, Profile
from onerec_trt.core.stages import run_stage
from onerec_trt.export.graph import export_graph
from onerec_trt.export.passes import attach_functions
from onerec_trt.export.serving import ServingModel
from onerec_trt.export.stage import SERVING_FILE, export_stage
from onerec_trt.export.weights import externalize
from onerec_trt.models.config import parse_config
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF
from onerec_trt.operators.kernels.registry import FACTORIES, KernelFactory
from onerec_trt.operators.launch.compile import Build
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import Kernel, Program
from onerec_trt.operators.operator import DOMAIN

DENSE = {"d_model": 128, "n_layers": 3, "n_heads": 2, "d_head": 64, "embed_dim": 16, "codebook": 64, "ffn_hidden": 256}
CONFIG = parse_config({**DENSE, "moe": {"experts": 4, "top_k": 2, "hidden": 128, "shared": 1, "dense_layers": 1}})

EXPERTS = {
    "fp16": "MoeExperts",
    "fp8-static": "MoeExpertsFp8Tensor",
    "fp8-row": "MoeExpertsFp8Row",
    "fp8-paper": "MoeExpertsFp8Block",
    "fp8-paper-attention": "MoeExpertsFp8Block",
    "fp8-row-block": "MoeExpertsFp8RowBlock",
}
SWIGLU_IN_PRODUCT = {"fp16": ("LinearSwiGlu",), "fp8-static": ("Fp8LinearSwiGluQuantTensor",)}
NORM_BEHIND = {"fp16": "RmsNorm", "fp8-static": "RmsNormQuantTensor"}


def uncompiled(factory: KernelFactory) -> KernelFactory:
    """The factory with kernels that nobody can run."""

    def kernel(build: Build) -> Kernel:
        return Kernel(b"cubin", build.function, build.warps, 0, 0)

    def program(node: Node) -> Program | None:
        return factory.program(replace(node, compile=kernel))

    return KernelFactory(program)


UNCOMPILED = {name: uncompiled(factory) for name, factory in FACTORIES.items()}


def _serving_graph(folder: Path) -> Path:
    """What the export stage writes of `quantized`, without the scoring graph."""
    serving = ServingModel(open_quantized(folder / "quantized"), (8, 8, 8)).eval()
    graph = export_graph(serving, serving.io, (torch.zeros(2, 4, CONFIG.feature_width).half(), torch.tensor([[1, 1, 2], [1, 2, 0]])))
    attach_functions(graph)
    externalize([graph], folder)
    onnx.save(ir.to_proto(graph), folder / SERVING_FILE)
    return folder / SERVING_FILE


@pytest.mark.parametrize("precision", list(EXPERTS))
def test_every_operator_with_a_kernel_becomes_one(tmp_path: Path, precision: PrecisionName) -> None:
    amax = {target.group: 1.0 for target in quantized_targets(CONFIG, precision)}
    random_quantized_checkpoint(CONFIG, precision, tmp_path / "quantized", 0, amax)
    path = _serving_graph(tmp_path)
    model = onnx.load(path, load_external_data=False)
    before = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    kernels = Kernels(UNCOMPILED, "9.0")
    made = use_kernels(model, kernels)
    assert Counter(node.operator for node in made) == {name: count for name, count in before.items() if name in FACTORIES}
    in_fp8 = precision == "fp8-paper-attention"
    attentions = {"ContextAttentionFp8" if in_fp8 else "ContextAttention", "BeamSelfAttention1", "BeamSelfAttention2"}
    norm = "RmsNormQuantTensor" if precision == "fp8-static" else "RmsNormQuantRow"
    rest = {"Linear", "RmsNorm"} if precision == "fp16" else {"Fp8LinearAdd", norm}
    assert {node.operator for node in made} >= attentions | rest | {"MoeRoute", "BeamStep", EXPERTS[precision]}
    over_context = [node for node in made if node.operator in ("ContextAttention", "ContextAttentionFp8")]
    assert all((node.product, node.in_fp8) == (True, in_fp8) for node in over_context)
    experts = [node for node in made if node.operator == EXPERTS[precision]]
    assert all((node.product, node.in_fp8) == (True, precision != "fp16") for node in experts), "the builder counts them"
    _check_fusions(path, precision, before, kernels)


def _check_fusions(path: Path, precision: PrecisionName, before: Counter[str], kernels: Kernels) -> None:
    """A build takes together what one kernel can: attention or SwiGLU and quantization, and experts and the norm of the next block.

    Keys of the model are its values. The norm before the head stays apart from the experts of the last block.
    """
    fused = prepare(path, [Profile(batch=(1, 2, 4), context=(2, 4, 8))], without_block_scales, kernels)
    quant = "QuantTensor" if precision == "fp8-static" else "QuantRow"
    layers = CONFIG.n_layers
    beams = {} if precision == "fp16" else {f"BeamSelfAttention{history}{quant}": layers for history in (1, 2)}
    with_codes = precision in ("fp8-static", "fp8-row-block")
    in_fp8 = precision == "fp8-paper-attention"
    contexts = {"SharedContextAttentionQuantTensor" if with_codes else "SharedContextAttention": 3 * layers}
    contexts = {"ContextAttentionFp8": 3 * layers} if in_fp8 else contexts
    counts = Counter(node.operator for node in fused.kernel_nodes)
    assert {name: count for name, count in counts.items() if "Attention" in name} == {
        **(beams or {"BeamSelfAttention1": layers, "BeamSelfAttention2": layers}),
        **contexts,
    }
    assert CONFIG.moe is not None
    swiglu = dict.fromkeys(SWIGLU_IN_PRODUCT.get(precision, ()), 3 * CONFIG.moe.dense_layers)
    assert {name: count for name, count in counts.items() if "LinearSwiGlu" in name} == swiglu
    quantized = sum(beams.values()) + with_codes * 3 * layers
    followed = 3 * (layers - 2)  # the first block is dense
    normed = {name: count for name, count in counts.items() if name in EXPERTS_OF}
    assert normed == {f"{EXPERTS[precision]}{NORM_BEHIND.get(precision, 'RmsNormQuantRow')}": followed}
    assert counts[EXPERTS[precision]] == 3 * (layers - 1) - followed
    kernels_before = sum(count for name, count in before.items() if name in FACTORIES)
    assert sum(counts.values()) == kernels_before - quantized - followed - sum(swiglu.values())
    assert counts["QuantTensor"] + counts["QuantRow"] == before["QuantTensor"] + before["QuantRow"] - quantized
    places = {f"step{step}.blocks.{layer}.self.attention" for step in (1, 2) for layer in range(layers) if beams}
    places |= {f"step{step}.blocks.{layer}.cross.attention" for step in range(3) for layer in range(layers)}
    assert {node.name for node in fused.kernel_nodes if node.operator in beams | contexts} == places
    in_fused = {place for place in places if not (in_fp8 and ".cross." in place)}
    in_fused |= {f"step{step}.blocks.{layer}.ffn.experts" for step in range(3) for layer in range(1, layers - 1)}
    in_fused |= {f"step{step}.blocks.0.ffn.gate_up" for step in range(3) if swiglu}
    assert {node.name for node in fused.fused_nodes} == in_fused


def test_steps_that_follow_a_catalogue_run_their_kernels(tmp_path: Path) -> None:
    random_quantized_checkpoint(CONFIG, "fp16", tmp_path / "quantized", 0)
    options = ExportOptions(beam=(8, 8, 8), items="catalogue", item_capacity=100, max_excluded=16, category_classes=32)
    run_stage(export_stage(options, tmp_path / "quantized", tmp_path / "exported", scoring=False))
    profile = Profile(batch=(1, 2, 4), context=(2, 4, 8))
    graph = prepare(tmp_path / "exported" / SERVING_FILE, [profile], None, Kernels(UNCOMPILED, "9.0"))
    steps = {node.name: node.operator for node in graph.kernel_nodes if "Beam" in node.operator and "Attention" not in node.operator}
    assert steps == {f"step{step}.beam": f"BeamStepItems{step + 1}" for step in range(3)}
    (shapes,) = graph.profiles
    assert shapes["excluded"] == ((1, 16), (2, 16), (4, 16))
    assert shapes["entries"] == ((100,),) * 3, "a catalogue does not come with the batch"
