"""Commands and the processes they start leave no file outside of their output: not in HOME, not in TMPDIR, not in the working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Variables under which ONNX Runtime reports nothing of its own accord, as in CI.
QUIET = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")
PLACES = ("HOME", "TMPDIR", "working")
# All in one process, which spares each command seconds of imports; the builder runs in a child of its own.
COMMANDS = """
import shlex, sys
from onerec_trt.tools.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["onerec-trt", *shlex.split(line)]
    try:
        main()
    except SystemExit as ending:
        assert not ending.code, (line, ending.code)
"""
SESSION = """
import sys
if sys.argv[1] == "package":
    import onerec_trt
code = '''
import onnxruntime, numpy as np
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.ones(1, np.float32)})
'''
import subprocess
subprocess.run([sys.executable, "-P", "-c", code], check=True)
"""


def left_by(program: str, *arguments: str, folder: Path, given: str = "", **variables: str) -> list[str]:
    """Files that a new process and its children leave behind, as a user's shell starts it."""
    places = {name: folder / name for name in PLACES}
    for place in places.values():
        place.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in QUIET and not name.startswith("PYTEST")}
    environment |= {"HOME": str(places["HOME"]), "TMPDIR": str(places["TMPDIR"]), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(command, env=environment, cwd=places["working"], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(folder)) for place in places.values() for path in place.rglob("*") if path.is_file()]


def test_all_commands_leave_nothing_behind(world: Path, tmp_path: Path) -> None:
    for folder in ("fp16/exported", "fp16/plans", "fp16/validated", "fp8-row/calibrated"):
        shutil.rmtree(world / "out" / folder)
    plan = f"{world}/out/fp16/plans/sm89-b1-16-s2-16.plan"
    commands = [
        f"calibrate {world}/fp8-row.yaml --json",
        f"run {world}/fp16.yaml",
        f"report {world}/fp16.yaml --out {world}/report.html",
        f"inspect {world}/checkpoint",
        f"inspect {plan}",
        f"recommend {world}/out/fp16/exported/model.onnx {world}/heldout.parquet --out {world}/items.parquet --limit 4",
    ]
    assert left_by(COMMANDS, folder=tmp_path / "places", given="\n".join(commands)) == []
    assert (world / "items.parquet").exists()


@pytest.mark.parametrize(
    ("importing", "variables", "leaves"),
    [("package", {}, False), ("nothing", {}, True), ("package", {"ORT_DISABLE_TELEMETRY": "0"}, True)],
)
def test_onnxruntime_reports_in_child_processes_only_where_the_user_wants_it(
    tmp_path: Path, importing: str, variables: dict[str, str], leaves: bool
) -> None:
    """The two that report show that the check sees what reporting leaves behind."""
    left = left_by(SESSION, importing, folder=tmp_path / "places", **variables)
    assert any("onnxruntime" in path for path in left) is leaves, left
