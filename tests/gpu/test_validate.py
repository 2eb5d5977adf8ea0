"""The trained demo model on a GPU: export, build, and every gate on the plans, in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from onerec_trt.core.recipe import Recipe, with_build_options
from onerec_trt.engines.proof import inspect_proven
from onerec_trt.tools import demo as demo_run
from onerec_trt.tools.pipeline import folders_of, run_stages, validations

PROFILES = [{"batch": [1, 1, 1], "context": [1, 64, 256]}, {"batch": [1, 32, 32], "context": [1, 64, 256]}]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The demo's data and trained model, made once however many processes share the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    with FileLock(f"{folder}.lock"):
        for _ in demo_run.prepare(folder):
            pass
    return folder


def _recipe(demo: Path, precision: str) -> Recipe:
    (recipe,) = demo_run.recipes(demo, [precision])
    return with_build_options(recipe, target="tensorrt", profiles=PROFILES)


@pytest.mark.parametrize("precision", demo_run.DEMO_RECIPES)
def test_plans_of_the_demo_pass_every_gate(demo: Path, precision: str) -> None:
    recipe = _recipe(demo, precision)
    for _ in run_stages(recipe, ["calibrate", "export", "build", "validate-tensorrt"]):
        pass
    (result,) = validations([recipe], "tensorrt")
    assert result.engine == "tensorrt"
    assert [gate.sentence() for gate in result.gates if not gate.passed] == []
    assert {gate.name for gate in result.gates} >= {"forced KL, batch 2", "forced KL, batch 32"}
    plans = sorted(folders_of(recipe).plans.glob("*.plan"))
    assert len(plans) == 2
    assert all(inspect_proven(plan).validated for plan in plans)
