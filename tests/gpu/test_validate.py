"""The trained demo model on a GPU: the commands of the README's section "On your GPU", and every gate on the plans they build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.runtime.verdict import inspect_with_verdict
from onerec_trt.tools import demo as demo_run
from onerec_trt.tools.pipeline import folders_of, run_stages, validations

PROFILES = [{"batch": [1, 1, 1], "context": [1, 64, 256]}, {"batch": [1, 32, 32], "context": [1, 64, 256]}]
CASES = [(precision, plugins) for precision in demo_run.DEMO_RECIPES for plugins in (False, True)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The demo's data and trained model, made once however many processes share the tests, or found in ONEREC_TRT_DEMO."""
    base = tmp_path_factory.getbasetemp()
    folder = Path(os.environ.get("ONEREC_TRT_DEMO") or (base if worker_id == "master" else base.parent) / "demo")
    with FileLock(f"{folder}.lock"):
        for _ in demo_run.prepare(folder):
            pass
    return folder


def _recipe(demo: Path, precision: str, plugins: bool) -> tuple[Path, Recipe]:
    """The demo's recipe with two profiles, in a file beside it."""
    demo_run.recipes(demo, [precision])
    values = yaml.safe_load((demo / "recipes" / f"{precision}.yaml").read_text())
    values["name"] = f"{precision}-kernels" if plugins else precision
    values["build"] |= {"profiles": PROFILES, "plugins": plugins}
    file = demo / "recipes" / f"{values['name']}-gpu.yaml"
    file.write_text(yaml.safe_dump(values))
    return file, load_recipe(file)


def _onerec(*words: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "onerec_trt.tools.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(("precision", "plugins"), CASES, ids=[f"{p}-kernels" if k else p for p, k in CASES])
def test_plans_of_the_demo_pass_every_gate(demo: Path, precision: str, plugins: bool) -> None:
    file, recipe = _recipe(demo, precision, plugins)
    for _ in run_stages(recipe, ["calibrate", "export"]):
        pass
    _onerec("build", str(file), "--target", "tensorrt")
    _onerec("validate", str(file), "--engine", "tensorrt")
    (result,) = validations([recipe], "tensorrt")
    assert result.engine == "tensorrt"
    assert [gate.sentence() for gate in result.gates if not gate.passed] == []
    assert {gate.name for gate in result.gates} >= {"scoring KL, batch 2", "scoring KL, batch 32"}
    plans = sorted(folders_of(recipe).plans.parent.glob("plans-tensorrt/*.plan"))
    assert len(plans) == 2
    for plan in plans:
        record = inspect_with_verdict(plan)
        assert record.validated
        assert (record.plugins is not None) == plugins
        assert record.fp8_gemms.found == record.fp8_gemms.expected
        print(f"{plan.parent.parent.name} {plan.name}: {record.bytes} bytes, built in {record.build_seconds} s")
    print(result.scoring, result.beams)
