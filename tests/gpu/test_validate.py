"""The whole way on a GPU: calibrate, export, build, and every gate on the plans, in every precision that is built natively."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.recipe import load_recipe
from onerec_trt.engines.proof import inspect_proven
from onerec_trt.tools.pipeline import folders_of, run_stages, validations

PROFILES = [{"batch": [1, 1, 1], "context": [1, 8, 16]}, {"batch": [1, 16, 32], "context": [1, 8, 16]}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[[Path], None]) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp16", "fp8-static", "fp8-row", "fp8-paper"])
def test_plans_pass_every_gate(world: Path, make_recipe: Callable[..., Path], precision: str) -> None:
    recipe = load_recipe(make_recipe(world, precision, build={"target": "tensorrt", "profiles": PROFILES}))
    for _ in run_stages(recipe, ["calibrate", "export", "build", "validate-tensorrt"]):
        pass
    (result,) = validations([recipe], "tensorrt")
    assert result.engine == "tensorrt"
    assert result.passed, [gate.sentence() for gate in result.gates if not gate.passed]
    assert {gate.name for gate in result.gates} >= {"forced KL, batch 1", "forced KL, batch 32"}
    plans = sorted(folders_of(recipe).plans.glob("*.plan"))
    assert len(plans) == 2
    assert all(inspect_proven(plan).validated for plan in plans)
