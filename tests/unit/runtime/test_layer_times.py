"""Where a plan's time goes: layers summed over blocks and steps by the places they compute, kernels named, nothing lost."""

from __future__ import annotations

import pytest
from onerec_trt.runtime.layer_times import times_by_place

DOWN, QUERY = "step{}.blocks.{}.ffn.down", "step{}.blocks.{}.cross.q"
TIMES = [("gemm0", 1.0), ("gemm1", 2.0), ("gemm2", 4.0), ("fused", 0.5), ("copy", 0.25)]


def entry(name: str, kernel: str, *nodes: str) -> dict[str, str]:
    return {"Name": name, "LayerType": "gemm", "TacticName": kernel, "Metadata": "".join(f"[ONNX Layer: {node}]" for node in nodes)}


REPORT = {
    "Layers": [
        entry("gemm0", "small", DOWN.format(0, 3) + "/MatMul"),
        entry("gemm1", "large", DOWN.format(1, 3) + "/MatMul", DOWN.format(1, 3) + "/Cast_1"),
        entry("gemm2", "large", DOWN.format(2, 11) + "/MatMul"),
        entry("fused", "generated", DOWN.format(1, 3) + "/Add", QUERY.format(1, 4) + "/Mul", DOWN.format(1, 3) + "/Cast"),
        "a layer without detail",
    ]
}


def test_layers_of_one_place_count_together_whatever_their_block_and_step() -> None:
    down, fused, rest = times_by_place(TIMES, REPORT)
    assert (down.places, down.layers, down.milliseconds) == ("blocks.*.ffn.down", 3, 7.0)
    assert (fused.places, fused.milliseconds) == ("blocks.*.ffn.down, blocks.*.cross.q", 0.5)
    assert (rest.places, rest.kernels) == ("elsewhere", {"copy": 1})


def test_kernels_are_named_the_slowest_first() -> None:
    assert list(times_by_place(TIMES, REPORT)[0].kernels.items()) == [("large", 2), ("small", 1)]


def test_no_time_is_lost() -> None:
    assert sum(place.milliseconds for place in times_by_place(TIMES, REPORT)) == pytest.approx(sum(taken for _, taken in TIMES))


def test_a_plugin_is_placed_by_its_name() -> None:
    plugin = {"Name": QUERY.format(0, 3), "LayerType": "PluginV3", "Metadata": ""}
    (place,) = times_by_place([(plugin["Name"], 1.0)], {"Layers": [plugin]})
    assert (place.places, place.kernels) == ("blocks.*.cross.q", {"PluginV3": 1})
