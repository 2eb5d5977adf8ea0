"""Which kernel computes which multiplication, told from entries as the engine inspector of TensorRT 10 and 11 writes them."""

from __future__ import annotations

from typing import Any

import pytest
from onerec_trt.builders.kernel_programs import KernelNode
from onerec_trt.builders.layer_report import computed_in_fp8, plan_layers
from onerec_trt.runtime.plan_record import PlanLayer

QUERY, OUT = "step0.blocks.0.cross.q/MatMul", "step0.blocks.0.cross.o/MatMul"
FP8_KERNEL = "sm90_xmma_gemm_e4m3f16_e4m3f32_f32_tn_n_tilesize64x128x128_warpgroupsize1x1x1"
FP16_KERNEL = "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x128x64"


def _entry(*nodes: str, kernel: str = FP8_KERNEL, kind: str = "gemm", inputs: str = "FP8", name: str = "layer_myl0_1") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Dimensions": [64, 1408], "Format/Datatype": inputs}],
        "Outputs": [{"Name": "y", "Dimensions": [64, 4224], "Format/Datatype": "Half"}],
        "TacticName": kernel,
        "StreamId": 0,
        "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def _layers(*entries: Any) -> tuple[PlanLayer, ...]:
    return plan_layers({"Layers": list(entries), "Bindings": ["features"]}, {QUERY, OUT})


def test_a_layer_says_its_kernel_types_and_shapes() -> None:
    (layer,) = _layers(_entry(QUERY, "step0.blocks.0.cross.q/Mul"))
    assert (layer.nodes, layer.kernel, layer.kind, layer.in_fp8) == ((QUERY,), FP8_KERNEL, "gemm", True)
    assert (layer.inputs, layer.outputs) == (("FP8 [64, 1408]",), ("Half [64, 4224]",))


@pytest.mark.parametrize("separator", ["", "\x1e", "\x1f"])
def test_several_nodes_in_one_layer(separator: str) -> None:
    entry = _entry()
    entry["Metadata"] = separator.join((f"[ONNX Layer: {QUERY}]", f"[ONNX Layer: {OUT}]", f"[ONNX Layer: {QUERY}]"))
    (layer,) = _layers(entry)
    assert layer.nodes == (QUERY, OUT)


def test_tensorrt_11_has_a_field_for_the_type_alone() -> None:
    entry = _entry(QUERY)
    entry["Inputs"] = [{"Name": "x", "Dimensions": [1], "Format": "Row major linear", "Datatype": "FP8"}]
    assert _layers(entry)[0].inputs == ("FP8 [1]",)


@pytest.mark.parametrize(
    ("entry", "in_fp8"),
    [
        (_entry(QUERY), True),
        (_entry(QUERY, kernel="cutlass_kernel_0x12", inputs="FP8"), True),
        (_entry(QUERY, kernel=FP16_KERNEL, inputs="Half"), False),
        (_entry(QUERY, kernel="__myl_FcMulCast_0xabc", kind="kgen", inputs="FP8"), False),  # may widen the codes first
        (_entry(QUERY, kernel="_gemm_mha_v2_0xabc", kind="kgen", inputs="Half"), False),
    ],
)
def test_fp8_is_what_the_kernel_says(entry: dict[str, Any], in_fp8: bool) -> None:
    layers = _layers(entry)
    assert [layer.in_fp8 for layer in layers] == [in_fp8]
    assert (QUERY in computed_in_fp8(layers)) is in_fp8


@pytest.mark.parametrize(
    "entry",
    [
        _entry("step0.blocks.0.cross.norm/Mul"),
        _entry(QUERY, kernel="__myl_MoveCast_0xabc", kind="kgen"),
        _entry(QUERY, kernel="", kind="Reformat"),
        "layer names only",
    ],
)
def test_what_multiplies_nothing_is_left_out(entry: Any) -> None:
    assert _layers(entry) == ()


def test_fp8_must_hold_in_every_profile() -> None:
    layers = _layers(
        _entry(QUERY, name="a_myl0_1"),
        _entry(OUT, name="b_myl0_2"),
        _entry(QUERY, name="a_myl1_1 [profile 1]"),
        _entry(OUT, name="b_myl1_2 [profile 1]", kernel=FP16_KERNEL, inputs="Half"),
    )
    assert [(layer.profile, layer.name) for layer in layers] == [(0, "a_myl0_1"), (0, "b_myl0_2"), (1, "a_myl1_1"), (1, "b_myl1_2")]
    assert computed_in_fp8(layers) == {QUERY}


@pytest.mark.parametrize("name", ["step0.blocks.0.cross.q", "PluginV3_12 [profile 0]"])
def test_a_plugin_is_told_by_its_place(name: str) -> None:
    nodes = [
        KernelNode("step0.blocks.0.cross.q", "Fp8Linear", ("gemm_sm90", "gemm"), product=True, in_fp8=True, fp8_outputs=()),
        KernelNode("step0.blocks.0.cross.norm", "RmsNorm", ("rms_norm",), product=False, in_fp8=False, fp8_outputs=()),
    ]
    entry = {"LayerType": "PluginV3", "Inputs": [{"Name": "x", "Dimensions": [64, 1408], "Format/Datatype": "FP8"}], "Outputs": []}
    place = {"Name": name, "Metadata": "" if name == nodes[0].name else f"[ONNX Layer: {nodes[0].name}]"}
    norm = {"Name": nodes[1].name, "Metadata": f"[ONNX Layer: {nodes[1].name}]"}
    moved = {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Metadata": f"[ONNX Layer: {nodes[0].name}]"}
    (layer,) = plan_layers({"Layers": [{**entry, **place}, {**entry, **norm}, {**entry, **moved}]}, {QUERY}, nodes)
    assert (layer.nodes, layer.kernel, layer.kind, layer.in_fp8) == ((nodes[0].name,), "gemm_sm90, gemm", "PluginV3", True)
    assert computed_in_fp8([layer]) == {nodes[0].name}
