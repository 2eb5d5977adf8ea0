"""Plans built by TensorRT on the GPU in this machine: what they run in FP8, profiles, the timing cache, block scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.builders.stage import build_stage
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import BuildOptions, ExportOptions, PrecisionName
from onerec_trt.core.records import Record
from onerec_trt.core.stages import run_stage
from onerec_trt.export.stage import export_stage
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.runtime.plan_record import PlanRecord, inspect_plan

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
            random_quantized_checkpoint(config, precision, root / f"{key}-quantized", 0)
            run_stage(export_stage(ExportOptions(beam=(16, 16, 16)), root / f"{key}-quantized", root / key))
            done[key] = root / key
        return done[key]

    return make


def build(precision: PrecisionName, exported: Path, folder: Path, baseline: Path | None = None, **options: Any) -> Record:
    """Plans for the GPU in this machine, at one profile by default."""
    chosen = BuildOptions.model_validate({"target": "tensorrt", "profiles": PROFILES[1:], **options})
    return run_stage(build_stage(chosen, precision, exported, folder, baseline=baseline))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of kernel timings that the builds here share."""
    return str(tmp_path_factory.mktemp("timings"))


@pytest.fixture(scope="module")
def baselines(exported: Exported, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of the dense model in fp8-row and their FP16 baselines."""
    folder = tmp_path_factory.mktemp("baselines") / "plans"
    build("fp8-row", exported(DENSE, "fp8-row"), folder, exported(DENSE, "fp16"), fp16_baseline=True, timing_cache=cache)
    return folder


def _plan(folder: Path, form: str = "serving", precision: str = "fp8-row") -> PlanRecord:
    (plan,) = (p for p in map(inspect_plan, folder.glob("*.plan")) if (p.form, p.precision) == (form, precision))
    return plan


@pytest.mark.parametrize("form", ["serving", "scoring"])
def test_every_quantized_product_runs_in_fp8(baselines: Path, form: str) -> None:
    plan = _plan(baselines, form)
    assert plan.fp8_gemms.expected == plan.fp8_gemms.found == LAYERS * STEPS * LINEARS
    assert plan.gpu == torch.cuda.get_device_name(0)
    assert any("MatMul" in node and "attention" in node for layer in plan.layers for node in layer.nodes)
    assert all(layer.kernel and layer.inputs and layer.outputs for layer in plan.layers)


@pytest.mark.parametrize("form", ["serving", "scoring"])
def test_the_fp16_baseline_lies_beside_and_has_no_fp8(baselines: Path, form: str) -> None:
    plan = _plan(baselines, form, "fp16")
    assert (plan.fp8_gemms.expected, plan.fp8_gemms.found) == (0, 0)
    assert plan.layers
    assert not any(layer.in_fp8 for layer in plan.layers)


def test_the_inspector_s_report_is_kept_whole(baselines: Path) -> None:
    report = json.loads(next(baselines.glob("layers-sm90-b*[0-9].json")).read_text())
    assert len(report["Layers"]) > len(_plan(baselines).layers)


def test_the_timing_cache_makes_a_strict_build_possible(baselines: Path, exported: Exported, cache: str, tmp_path: Path) -> None:
    build("fp8-row", exported(DENSE, "fp8-row"), tmp_path / "plans", timing_cache=cache, strict_timing_cache=True)
    first, again = _plan(baselines), _plan(tmp_path / "plans")
    assert first.timing_cache is not None
    assert again.timing_cache is not None
    assert first.timing_cache.sha256_before is None
    assert again.timing_cache.sha256_before == again.timing_cache.sha256
    assert [layer.kernel for layer in again.layers] == [layer.kernel for layer in first.layers]


def test_a_strict_build_fails_on_kernels_never_timed(baselines: Path, exported: Exported, cache: str, tmp_path: Path) -> None:
    """The cache knows the dense model's kernels, not those of experts."""
    options: dict[str, Any] = {"timing_cache": cache, "strict_timing_cache": True, "fp8_coverage": 0}
    with pytest.raises(BuildError, match=r"cannot build the plan|timing cache lacks") as caught:
        build("fp8-row", exported(MOE, "fp8-row"), tmp_path / "others", **options)
    assert "strict_timing_cache off" in caught.value.hint
    assert not (tmp_path / "others").exists()


def test_several_profiles_in_one_plan_and_one_plan_each(exported: Exported, cache: str, tmp_path: Path) -> None:
    source = exported(DENSE, "fp8-row")
    build("fp8-row", source, tmp_path / "one", profiles=PROFILES, timing_cache=cache)
    one = _plan(tmp_path / "one")
    assert {layer.profile for layer in one.layers} == {0, 1}
    assert one.fp8_gemms.found == one.fp8_gemms.expected
    record = build("fp8-row", source, tmp_path / "each", profiles=PROFILES, plan_per_profile=True, timing_cache=cache)
    assert sum(name.endswith(".plan") for name in record.wrote) == 4


@pytest.mark.parametrize("precision", ["fp8-row", "fp8-paper", "fp8-row-block"])
def test_experts_build_whatever_their_scales(exported: Exported, cache: str, tmp_path: Path, precision: PrecisionName) -> None:
    build(precision, exported(MOE, precision), tmp_path / "plans", fp8_coverage=0, timing_cache=cache)
    plan = _plan(tmp_path / "plans", precision=precision)
    assert plan.fp8_gemms.found is not None
    assert all("experts" in node for node in plan.fp8_gemms.missing)
    assert (plan.fp8_gemms.dequantized == 0) == (precision == "fp8-row")
