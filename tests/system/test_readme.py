"""The README is true: every command in it is run here, and `make demo` leaves what it promises."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.core.recipe import load_recipe
from onerec_trt.models.catalogue import build_catalogue
from onerec_trt.models.demo import DEMO_CONFIG
from onerec_trt.tools.pipeline import run_stages, validations
from onerec_trt.tools.recommend import recommend

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "demo"
RECIPES = {"fp16", "fp8-static", "fp8-row", "fp8-row-block", "fp8-paper"}
SERVING = (
    "onerec-trt repository out/NAME/exported --out out/served",
    "onerec-trt serve out/served --server .venv-server",
    "python examples/ask.py 127.0.0.1:8000",
)
Run = Callable[..., Any]
SUMMARY_KEYS = {"hit@10", "overlap@10", "scoring_error_vs_fp32", "scoring_error_ratio", "valid_items"}


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def call(*command: str) -> subprocess.CompletedProcess[str]:
    """With one thread: other tests run beside it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture(scope="module")
def demo() -> dict[str, object]:
    """`make demo`, as the README says it, in the checkout; the summary it leaves."""
    done = call("make", "demo")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary: dict[str, object] = json.loads((OUT / "summary.json").read_text())
    return summary


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    assert readme_commands() == [
        "make demo",  # the fixture above
        "make test",  # what runs this; see the next test
        "onerec-trt run recipe.yaml",
        "onerec-trt inspect out/NAME/plans/sm89-b1-32-s2-3072.plan",
        "onerec-trt recommend out/NAME/exported/model.onnx requests.parquet --out items.parquet",  # test_examples.py
        "cp configs/4b-a0.5b-fp8-row-block.yaml recipe.yaml",  # needs a GPU; a small one: test_backends.py
        "onerec-trt run recipe.yaml",
        "onerec-trt build recipe.yaml --target tensorrt",  # these three: tests/gpu; here they say what is missing
        "onerec-trt validate recipe.yaml --engine tensorrt",
        "onerec-trt bench --size 1B",
        *SERVING,
    ]


@pytest.mark.parametrize("command", [command for command in readme_commands() if command not in SERVING][-3:])
def test_a_command_for_the_gpu_says_that_there_is_none(demo: dict[str, object], run: Run, tmp_path: Path, command: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one; tests/gpu runs the commands")
    program, *arguments = shlex.split(command.replace("recipe.yaml", str(OUT / "recipes" / "fp16.yaml")))
    assert program == "onerec-trt"
    (working := tmp_path / "working").mkdir()
    done = run(*arguments, cwd=working)
    assert done.code == 1, done.out + done.err
    assert "Traceback" not in done.err
    assert re.search(r"NVIDIA driver|no (serving|scoring) plan of TensorRT", done.err), done.err
    assert not list(working.iterdir())


def test_ci_runs_the_readmes_test_command_which_runs_all_tests() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    planned = call("make", "--dry-run", "test").stdout
    assert "ruff check ." in planned
    assert "mypy -p onerec_trt" in planned
    (tests,) = re.findall(r"python -m pytest(.*)$", planned, re.MULTILINE)
    assert tests.split() == ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"], "no selection of tests"


def test_the_demo_passes_every_gate(demo: dict[str, list[dict[str, object]]]) -> None:
    assert {gate["recipe"] for gate in demo["gates"]} == RECIPES | {"fp32"}
    for gate in demo["gates"]:
        assert set(gate) == {"name", "recipe", "value", "threshold", "passed"}
        assert gate["passed"], gate
    names = {str(gate["name"]) for gate in demo["gates"]}
    assert {"overlap@10", "top-1 outside the tie band", "requests inside the tie band", "scoring log-probabilities"} <= names


def test_the_demo_shows_every_recipe_and_plans_for_two_gpu_generations(demo: dict[str, dict[str, object]]) -> None:
    assert set(demo["recipes"]) == RECIPES
    assert all(set(figures) == SUMMARY_KEYS for figures in demo["recipes"].values())  # type: ignore[call-overload]
    plans: list[dict[str, object]] = demo["plans"]  # type: ignore[assignment]
    assert {str(plan["target"]) for plan in plans} == {"tensorrt-rtx sm 8.9", "tensorrt-rtx sm 12.0"}
    assert len(plans) == len(RECIPES) * 2
    for plan in plans:
        assert plan["validated"] is False
        assert (OUT / str(plan["path"])).stat().st_size > 100_000


def test_the_fidelity_table_has_every_recipe_beside_fp32(demo: dict[str, object]) -> None:
    rows = {row["system"]: row for row in json.loads((OUT / "fidelity.json").read_text())["rows"]}
    assert set(rows) == RECIPES
    assert rows["fp16"]["standing"] == "noise floor"
    error = {name: next(cell["value"] for cell in row["cells"] if cell["metric"] == "score error, nat") for name, row in rows.items()}
    assert all(error[name] > 3 * error["fp16"] for name in RECIPES - {"fp16"}), error


def test_the_report_is_one_file_without_the_network(demo: dict[str, object]) -> None:
    page = (OUT / "report.html").read_text()
    assert all(recipe in page for recipe in RECIPES)
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)  # the plotting library's own text names addresses
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", markup)


def test_a_recipe_of_the_demo_runs_again_and_finds_everything_up_to_date(demo: dict[str, object], run: Run) -> None:
    done = run("run", OUT / "recipes" / "fp8-paper.yaml")
    assert done.code == 0, done.err[-4000:]
    assert done.err.count("up to date") == 4, done.err


def test_beams_that_follow_the_demo_s_catalogue_find_items_alone(demo: dict[str, Any], tmp_path: Path) -> None:
    assert 0.9 < demo["recipes"]["fp16"]["valid_items"] < 1, "open beams"
    for name in ("checkpoint", "data"):
        (tmp_path / name).symlink_to(OUT / name)
    shutil.copytree(OUT / "fp16" / "calibrated", tmp_path / "fp16-items" / "calibrated")  # beams change nothing in it
    (tmp_path / "recipes").mkdir()
    recipe = load_recipe(Path(shutil.copy(ROOT / "configs" / "demo-fp16-items.yaml", tmp_path / "recipes")))
    assert [result.record.stage for result in run_stages(recipe, ["calibrate", "export", "validate"]) if result.record.ran] == [
        "export",
        "validate",
    ]
    (result,) = validations([recipe])
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert [gate.value for gate in result.gates if gate.name == "share of valid items"] == [1.0]
    assert result.validity is not None
    assert (result.validity.found, result.validity.valid) == (64 * 32, 64 * 32)
    index = tmp_path / "items.index"
    build_catalogue(OUT / "data" / "catalogue.parquet", index, DEMO_CONFIG.codebook)
    model, requests = tmp_path / "fp16-items" / "exported" / "model.onnx", OUT / "data" / "heldout.parquet"
    assert recommend(model, requests, tmp_path / "found.parquet", limit=32, catalogue=index).valid_share == 1.0


def test_a_plan_can_be_inspected(demo: dict[str, object], run: Run) -> None:
    done = run("inspect", "out/demo/fp8-paper/plans/sm89-b1-32-s2-256.plan", "--json", cwd=ROOT)
    assert done.code == 0, done.err[-4000:]
    facts = json.loads(done.out)
    assert facts["compute_capability"] == "8.9"
    assert facts["validated"] is False


def test_the_readmes_ci_example_runs(demo: dict[str, object], tmp_path: Path) -> None:
    """The Python block of the README, with the demo's recipe and paths in place of the example's."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    recipe = (OUT / "recipes" / "fp16.yaml").read_text()
    assert "max_requests: 640" in recipe
    recipe = recipe.replace("../data/catalogue.parquet", str(OUT / "data" / "catalogue.parquet"))
    (tmp_path / "few.yaml").write_text(recipe.replace("max_requests: 640", "max_requests: 320"))  # the demo had all
    places = {
        "recipe.yaml": tmp_path / "few.yaml",
        "calibration.parquet": OUT / "data" / "calibration.parquet",
        "heldout.parquet": OUT / "data" / "heldout.parquet",
    }
    for name, path in places.items():
        assert f'"{name}"' in example
        example = example.replace(f'"{name}"', repr(str(path)))
    example = example.replace('checkpoint="checkpoint"', f"checkpoint={str(OUT / 'checkpoint')!r}")
    test_file = tmp_path / "test_example.py"
    test_file.write_text(example)
    done = call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(test_file))
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_demo_is_served_as_the_readme_says(demo: dict[str, object]) -> None:
    served = ROOT / "out" / "served"
    shutil.rmtree(served, ignore_errors=True)
    programs = Path(sys.executable).parent
    put, serve, ask = (command.replace("NAME", "demo/fp16").split() for command in SERVING)
    done = call(str(programs / put[0]), *put[1:])
    assert done.returncode == 0, done.stderr[-4000:]
    server = subprocess.Popen([programs / serve[0], *serve[1:]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        assert any(line.startswith("serving on 127.0.0.1: HTTP 8000, gRPC 8001") for line in server.stdout)
        done = call(sys.executable, *ask[1:])
    finally:
        server.send_signal(signal.SIGTERM)
        ended = server.wait(60)
    assert ended == 0
    assert re.fullmatch(r"(\w+ \(\d+, \d+, \d+\) log-probability -\d+\.\d+\n){2}", done.stdout), done.stdout + done.stderr[-4000:]
