"""Commands leave no file outside of their output: not in HOME, not in TMPDIR, not in the working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Variables under which ONNX Runtime reports nothing of its own accord, as in CI.
QUIET = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")


@pytest.mark.parametrize("arguments", [("inspect", "checkpoint"), ("validate", "fp16.yaml"), ("inspect", "out/fp16/exported")])
def test_a_command_leaves_nothing_behind(world: Path, tmp_path: Path, arguments: tuple[str, str]) -> None:
    shutil.rmtree(world / "out" / "fp16" / "validated")
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "working")}
    for folder in places.values():
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in QUIET and not name.startswith("PYTEST")}
    environment |= {"HOME": str(places["HOME"]), "TMPDIR": str(places["TMPDIR"]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "onerec_trt.tools.cli", arguments[0], str(world / arguments[1])]
    done = subprocess.run(command, env=environment, cwd=places["working"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = [path for folder in places.values() for path in folder.rglob("*") if path.is_file()]
    assert left == []
