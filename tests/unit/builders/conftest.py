"""A serving graph in miniature: one FP8 layer, a model-local function used twice, external data, dynamic batch and context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import pytest
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.core.recipe import ExportOptions, Recipe, parse_recipe
from onerec_trt.core.stages import run_stage
from onerec_trt.export.stage import export_stage
from onerec_trt.models.config import parse_config
from onnx import TensorProto, helper, numpy_helper

from .contract import with_contract
from .stages import exported_folder

WIDTH = 64


def small_model(operator: str = "Double", *, fp8: bool = True, batch: int | str = "B") -> onnx.ModelProto:
    """features @ weight, doubled twice; `sids` is `lengths`. `operator` other than Double has no function."""
    rng = np.random.default_rng(0)
    weight_NK = rng.standard_normal((WIDTH, WIDTH))
    codes = helper.make_tensor(
        "weight", TensorProto.FLOAT8E4M3FN, weight_NK.shape, (weight_NK * 10).astype(ml_dtypes.float8_e4m3fn).tobytes(), raw=True
    )
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, (), b"\0", raw=True)
    scale = numpy_helper.from_array(np.float16(0.05), "scale")
    weight_scale = numpy_helper.from_array(np.full(WIDTH, 0.01, np.float16), "weight_scale")
    quantized = [
        helper.make_node("QuantizeLinear", ["features", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["product"], name="layer"),
    ]
    plain = [helper.make_node("MatMul", ["features", "weight"], ["product"], name="layer")]
    nodes = [
        *(quantized if fp8 else plain),
        helper.make_node(operator, ["product"], ["once"], domain="onerec"),
        helper.make_node(operator, ["once"], ["scores"], domain="onerec"),
        helper.make_node("Identity", ["lengths"], ["sids"]),
    ]
    opset = helper.make_opsetid("", 21)
    double = helper.make_function("onerec", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [opset])
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT16, [batch, "S", WIDTH]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, [batch, 3]),
        ],
        [
            helper.make_tensor_value_info("sids", TensorProto.INT64, [batch, 3]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT16, [batch, "S", WIDTH]),
        ],
        [codes, zero, scale, weight_scale] if fp8 else [numpy_helper.from_array(weight_NK.astype(np.float16), "weight")],
    )
    functions = [double] if operator == "Double" else []
    opsets = [opset, helper.make_opsetid("onerec", 1)]
    return with_contract(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10))


def save(model: onnx.ModelProto, folder: Path) -> None:
    """As the export stage does: `model.onnx`, with every constant in `weights.data`."""
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="weights.data", size_threshold=0)


@pytest.fixture(name="make_model")
def _make_model() -> Callable[..., onnx.ModelProto]:
    return small_model


@pytest.fixture
def export(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Writes a model as an exported folder with its record."""

    def write(model: onnx.ModelProto) -> Path:
        def body(folder: Path) -> dict[str, object]:
            save(model, folder)
            return {}

        return exported_folder(tmp_path / "export", body)

    return write


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe with small profiles; keywords go into its `build` section."""

    def make(**build: object) -> Recipe:
        options = {"profiles": [{"batch": [1, 4, 8], "context": [1, 16, 32]}], "compute_capabilities": ["8.9"], **build}
        paths = dict.fromkeys(("checkpoint", "requests", "heldout"), "unused")
        return parse_recipe({"name": "small", "precision": "fp8-static", "build": options, **paths})

    return make


@pytest.fixture(scope="session")
def export_beams(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Literal["open", "catalogue"]], Path]:
    """A small model exported for real, with both graphs, whose beams are open or follow a catalogue. Read only."""
    config = {"d_model": 64, "n_layers": 1, "n_heads": 1, "d_head": 64, "embed_dim": 16, "codebook": 64, "ffn_hidden": 128}
    root = tmp_path_factory.mktemp("beams")
    random_quantized_checkpoint(parse_config(config), "fp16", root / "quantized", 0)

    def export(items: Literal["open", "catalogue"]) -> Path:
        options = ExportOptions(beam=(8, 8, 8), items=items, item_capacity=100, max_excluded=16, category_classes=32)
        run_stage(export_stage(options, root / "quantized", root / items))
        return root / items

    return export


@pytest.fixture(scope="session")
def host_cache(shared_folder: Path) -> Path:
    """Where this run of pytest keeps plugin hosts: compiling one takes seconds."""
    return shared_folder / "plugin-hosts"
