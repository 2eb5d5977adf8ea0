"""The table of a model's tensors against the model itself, the packed model, and the nodes of an exported graph."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.export.serving import Decoder
from onerec_trt.models.config import LEVELS, SIZES, MoeConfig, OneRecConfig, parse_config
from onerec_trt.models.layout import PLACES, block_of, label_of, layout, of_all_experts, within_block
from onerec_trt.models.onerec import OneRec
from onerec_trt.operators.operator import DOMAIN
from torch import nn

SMALL = parse_config(
    {
        "d_model": 64,
        "n_layers": 3,
        "n_heads": 2,
        "d_head": 32,
        "embed_dim": 8,
        "codebook": 32,
        "l_kv": 2,
        "s_kv": 2,
        "ffn_hidden": 96,
        "moe": {"experts": 3, "top_k": 2, "hidden": 128, "shared": 1, "dense_layers": 1},
    }
)
CONFIGS = {
    "small": SMALL,
    "no shared expert": SMALL.with_changes(moe=MoeConfig(experts=2, top_k=1, hidden=64, shared=0, dense_layers=0)),
    "1B": SIZES["1B"],
    "4B-A0.5B": SIZES["4B-A0.5B"],
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> OneRecConfig:
    return CONFIGS[request.param]


def model_of(config: OneRecConfig) -> OneRec:
    with torch.device("meta"):
        return OneRec(config)


def test_every_tensor_of_the_model_is_listed_once(config: OneRecConfig) -> None:
    listed = layout(config).tensors
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(model_of(config).state_dict())


def test_linears_are_the_models_with_their_shapes(config: OneRecConfig) -> None:
    linears = {name: tuple(module.weight.shape) for name, module in model_of(config).named_modules() if isinstance(module, nn.Linear)}
    assert {linear.name: linear.shape for linear in layout(config).linears} == linears
    assert [linear.name for linear in layout(config).linears] == list(linears)


def test_other_tensors_are_what_the_table_calls_them(config: OneRecConfig) -> None:
    model, others = model_of(config), layout(config).others
    kinds = {nn.RMSNorm: "norm", nn.Embedding: "embedding"}
    found = {f"{name}.weight": kinds[type(module)] for name, module in model.named_modules() if type(module) in kinds}
    found |= {name: "selection bias" for name, _ in model.named_buffers()}
    assert others == found


def test_fp32_tensors_are_those_of_the_routing(config: OneRecConfig) -> None:
    moe_blocks = [block for block in range(config.n_layers) if config.is_moe(block)]
    assert layout(config).fp32 == {f"blocks.{b}.ffn.{name}" for b in moe_blocks for name in ("router.weight", "selection_bias")}


def test_linears_of_one_input_stand_in_one_block_and_share_their_width(config: OneRecConfig) -> None:
    groups: dict[str, set[tuple[int | None, int, str]]] = {}
    for linear in layout(config).linears:
        assert block_of(linear.name) == block_of(linear.packed) == block_of(linear.place) == linear.block
        groups.setdefault(linear.input, set()).add((linear.block, linear.shape[1], linear.prepared))
    assert all(len(found) == 1 for found in groups.values())


@pytest.mark.parametrize("precision", ["fp16", "fp8-row"])
def test_packed_weights_hold_the_linears_in_the_tables_order(tmp_path: Path, precision: str) -> None:
    random_quantized_checkpoint(SMALL, precision, tmp_path, 0)  # type: ignore[arg-type]
    source = open_quantized(tmp_path)
    buffers = Decoder(source).state_dict()
    packed: dict[str, list[torch.Tensor]] = {}
    for linear in layout(SMALL).linears:
        if linear.kind != "context":
            packed.setdefault(linear.packed, []).append(source.tensor(linear.weight).float())
    for name, weights in packed.items():
        assert torch.equal(buffers[name].float(), torch.cat(weights)), name
    (context,) = {linear.packed for linear in layout(SMALL).linears if linear.kind == "context"}
    pathways = [source.tensor(linear.weight) for linear in layout(SMALL).linears if linear.kind == "context"]
    assert torch.equal(buffers[context].unflatten(1, (len(pathways), -1))[:, 2, : SMALL.feature_width], pathways[2])


def test_places_are_the_nodes_of_an_exported_graph(finished_world: Path) -> None:
    graph = onnx.load(finished_world / "out" / "fp8-row" / "exported" / "model.onnx", load_external_data=False).graph
    config = open_quantized(finished_world / "out" / "fp8-row" / "calibrated").config
    inputs = {node.name: list(node.input) for node in graph.node if node.domain == DOMAIN}
    multiplying = set()
    for linear in layout(config).linears:
        for prefix in [f"step{step}." for step in linear.steps] or [""]:
            node = f"{prefix}{linear.place}"
            assert f"decoder.{linear.packed}" in inputs[node], linear.name
            multiplying.add(node)
            if linear.prepared and linear.prepared != linear.place:
                assert any(name.startswith(f"{prefix}{linear.prepared}.") for name in inputs[node]), linear.name
    reads_weights = {name for name, read in inputs.items() if any(re.search(r"(weight|router|gate_up)$", r) for r in read)}
    norms = {name for name in inputs if name.endswith("norm")}
    assert reads_weights - norms == multiplying
    places = {within_block(re.sub(r"^step\d\.", "", name)) for name in inputs}
    assert all(any(place.startswith(known) for known in PLACES) for place in places)


def test_each_place_is_a_node_of_each_step() -> None:
    nodes = {node for linear in layout(SMALL).quantizable() for node in linear.nodes}
    assert len(nodes) == LEVELS * (3 * 4 + 2 + 2)
    assert {"step2.blocks.0.self.qkv", "step0.blocks.1.ffn.experts"} <= nodes


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("cross.o", ["blocks.0.cross.o", "blocks.1.cross.o", "blocks.2.cross.o"]),
        ("blocks.0.ffn.*", ["blocks.0.ffn.gate_up", "blocks.0.ffn.down"]),
        ("blocks.2.*.o", ["blocks.2.cross.o", "blocks.2.self.o"]),
        ("blocks.1.ffn.experts", ["blocks.1.ffn.experts"]),
        ("ffn", []),
        ("heads.*", []),
        ("*router*", []),
        ("blocks.3.*", []),
    ],
)
def test_a_pattern_matches_places_of_what_can_be_quantized(pattern: str, places: list[str]) -> None:
    assert list(dict.fromkeys(linear.place for linear in layout(SMALL).quantizable(pattern))) == places


def test_the_first_shard_holds_what_is_outside_the_blocks_then_comes_one_per_block(config: OneRecConfig) -> None:
    names = list(model_of(config).state_dict())
    shards = layout(config).shards(names)
    assert [{block_of(name) for name in shard} for shard in shards] == [{None}, *({block} for block in range(config.n_layers))]
    assert sorted(name for shard in shards for name in shard) == sorted(names)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("blocks.1.ffn.experts.5.gate.weight", "1 · ffn experts gate"),
        ("blocks.12.self_attention.qkv.input", "12 · self qkv input"),
        ("blocks.1.ffn", "1 · ffn"),
        ("context.pathways.0.weight", "context pathways 0"),
        ("heads.2.weight", "heads 2"),
    ],
)
def test_labels(name: str, label: str) -> None:
    assert label_of(of_all_experts(name)) == label
