"""Plans built by TensorRT on the GPU in this machine: what they run in FP8, profiles, the timing cache, block scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.builders.plan_record import PlanRecord, inspect_plan
from onerec_trt.builders.stage import build
from onerec_trt.calibration.random_checkpoint import random_quantised_checkpoint
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import ExportOptions, PrecisionName, Recipe, parse_recipe
from onerec_trt.export.stage import export
from onerec_trt.models.config import OneRecConfig, parse_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

LAYERS, STEPS, LINEARS = 2, 3, 6  # linears of a dense block: cross q and o, self qkv and o, gate and up, down
SIZES = {"d_model": 256, "n_layers": LAYERS, "n_heads": 2, "d_head": 128, "embed_dim": 16, "codebook": 256, "ffn_hidden": 512}
DENSE = parse_config(SIZES)
MOE = parse_config({**SIZES, "moe": {"experts": 4, "top_k": 2, "hidden": 256, "shared": 1, "dense_layers": 1}})
PROFILES = [{"batch": [1, 1, 1], "context": [1, 64, 128]}, {"batch": [2, 8, 8], "context": [1, 64, 128]}]

Exported = Callable[[OneRecConfig, PrecisionName], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root, done = tmp_path_factory.mktemp("exported"), {}

    def make(config: OneRecConfig, precision: PrecisionName) -> Path:
        key = f"{precision}-{'dense' if config.moe is None else 'moe'}"
        if key not in done:
            random_quantised_checkpoint(config, precision, root / f"{key}-quantised", 0)
            export(ExportOptions(beam=(16, 16, 16)), root / f"{key}-quantised", root / key)
            done[key] = root / key
        return done[key]

    return make


def _recipe(precision: PrecisionName, **options: Any) -> Recipe:
    paths = dict.fromkeys(("checkpoint", "requests", "heldout"), "unused")
    return parse_recipe(
        {"name": "r", "precision": precision, "build": {"target": "tensorrt", "profiles": PROFILES[1:], **options}, **paths}
    )


def _plan(folder: Path, form: str = "") -> PlanRecord:
    (path,) = (p for p in folder.glob("*.plan") if p.stem.endswith("-forced") == (form == "forced"))
    return inspect_plan(path)


@pytest.mark.parametrize("form", ["serving", "forced"])
def test_every_quantised_product_runs_in_fp8(exported: Exported, tmp_path: Path, form: str) -> None:
    build(_recipe("fp8-row"), exported(DENSE, "fp8-row"), tmp_path / "plans")
    plan = _plan(tmp_path / "plans", form)
    assert plan.fp8_gemms.expected == plan.fp8_gemms.found == LAYERS * STEPS * LINEARS
    assert plan.gpu == torch.cuda.get_device_name(0)
    assert any("MatMul" in node and "attention" in node for layer in plan.layers for node in layer.nodes)
    assert all(layer.kernel and layer.inputs and layer.outputs for layer in plan.layers)


def test_an_fp16_plan_has_no_fp8(exported: Exported, tmp_path: Path) -> None:
    build(_recipe("fp16"), exported(DENSE, "fp16"), tmp_path / "plans")
    plan = _plan(tmp_path / "plans")
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found) == (0, 0)
    assert plan.layers
    assert not any(layer.in_fp8 for layer in plan.layers)


def test_several_profiles_in_one_plan_and_one_plan_each(exported: Exported, tmp_path: Path) -> None:
    source = exported(DENSE, "fp8-row")
    build(_recipe("fp8-row", profiles=PROFILES), source, tmp_path / "one")
    one = _plan(tmp_path / "one")
    assert {layer.profile for layer in one.layers} == {0, 1}
    assert one.fp8_gemms.found == one.fp8_gemms.expected
    record = build(_recipe("fp8-row", profiles=PROFILES, plan_per_profile=True), source, tmp_path / "each")
    assert sum(name.endswith(".plan") for name in record.wrote) == 4


def test_the_timing_cache_makes_a_strict_build_possible(exported: Exported, tmp_path: Path) -> None:
    source, cache = exported(DENSE, "fp8-row"), {"timing_cache": str(tmp_path / "cache")}
    build(_recipe("fp8-row", **cache), source, tmp_path / "plans")
    first = _plan(tmp_path / "plans")
    build(_recipe("fp8-row", **cache, strict_timing_cache=True), source, tmp_path / "plans")
    again = _plan(tmp_path / "plans")
    assert first.timing_cache is not None
    assert again.timing_cache is not None
    assert first.timing_cache.sha256_before is None
    assert again.timing_cache.sha256_before == again.timing_cache.sha256
    assert [layer.kernel for layer in again.layers] == [layer.kernel for layer in first.layers]


def test_a_strict_build_fails_on_kernels_never_timed(exported: Exported, tmp_path: Path) -> None:
    cache = {"timing_cache": str(tmp_path / "cache")}
    build(_recipe("fp16", **cache), exported(DENSE, "fp16"), tmp_path / "plans")
    with pytest.raises(BuildError, match="cannot build the plan") as caught:
        build(_recipe("fp8-row", **cache, strict_timing_cache=True), exported(DENSE, "fp8-row"), tmp_path / "others")
    assert "strict_timing_cache off" in caught.value.hint
    assert not (tmp_path / "others").exists()


def test_the_fp16_twin_lies_beside(exported: Exported, tmp_path: Path) -> None:
    build(_recipe("fp8-row", fp16_twin=True), exported(DENSE, "fp8-row"), tmp_path / "plans", exported(DENSE, "fp16"))
    plans = [inspect_plan(path) for path in (tmp_path / "plans").glob("*.plan")]
    assert len(plans) == 4
    assert {(plan.precision, plan.form) for plan in plans} == {(p, f) for p in ("fp16", "fp8-row") for f in ("serving", "forced")}


@pytest.mark.parametrize("precision", ["fp8-row", "fp8-paper"])
def test_experts_build_whatever_their_scales(exported: Exported, tmp_path: Path, precision: PrecisionName) -> None:
    build(_recipe(precision, fp8_coverage=0), exported(MOE, precision), tmp_path / "plans")
    plan = _plan(tmp_path / "plans")
    assert plan.fp8_gemms.found is not None
    assert all("experts" in node for node in plan.fp8_gemms.missing)
    assert (plan.fp8_gemms.dequantised == 0) == (precision == "fp8-row")


def test_the_inspector_s_report_is_kept_whole(exported: Exported, tmp_path: Path) -> None:
    record = build(_recipe("fp8-row"), exported(DENSE, "fp8-row"), tmp_path / "plans")
    (name,) = (name for name in record.wrote if name.startswith("layers-") and "forced" not in name)
    (report,) = json.loads((tmp_path / "plans" / name).read_text())
    assert len(report["Layers"]) > len(_plan(tmp_path / "plans").layers)
