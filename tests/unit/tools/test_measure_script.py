"""docs/measurements/measure.sh: every job calls commands that there are, with options that they take, and says how it ended."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from onerec_trt.tools import cli
from onerec_trt.tools.bench.plans import RECIPES
from typer.core import TyperGroup
from typer.main import get_command

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "docs" / "measurements" / "measure.sh"
JOBS = (
    ["plans", "moe", "dense", "operators", "items", "model", "serving", "tests"]
    + [
        f"recipe-{path.stem.removeprefix('4b-a0.5b-')}"
        for path in sorted((ROOT / "configs").glob("4b-a0.5b-*.yaml"))
        if "rtx" not in path.stem
    ]
    + ["reference-0.1B", "reference-0.1B-moe"]
)
# In the place of each program: its words, one call in a line, and the exit code of the variable FAILS.
RECORD = '#!/usr/bin/env bash\nprintf "%s\\t" "$(basename "$0")" "$@" >> "$CALLS"; echo >> "$CALLS"; exit ${FAILS:-0}\n'


@pytest.fixture
def measure(tmp_path: Path) -> Any:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("onerec-trt", "python3", "cp"):
        (programs / name).write_text(RECORD)
        (programs / name).chmod(0o755)
    (programs / "nvidia-smi").write_text("#!/usr/bin/env bash\necho NVIDIA H200\necho NVIDIA H200\n")
    (programs / "nvidia-smi").chmod(0o755)

    def run(*jobs: str, **environment: str) -> tuple[int, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "out" / "model").mkdir(parents=True, exist_ok=True)
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "COMMIT": "abc", "SERVER": "server", **environment}
        done = subprocess.run(
            ["bash", str(SCRIPT), str(tmp_path / "out"), *jobs], env={**os.environ, **own}, capture_output=True, check=False
        )
        return done.returncode, [line.strip("\t").split("\t") for line in calls.read_text().splitlines()]

    return run


def require_command(words: list[str]) -> list[str]:
    """Check words as the command line does, without running anything; gives those of the command."""
    command, name = get_command(cli.app), "onerec-trt"
    while isinstance(command, TyperGroup):
        name, *words = words
        command = cast(Any, command.commands[name])
    command.make_context(name, list(words))
    return words


@pytest.mark.parametrize("job", JOBS)
def test_a_job_calls_commands_that_there_are(measure: Any, tmp_path: Path, job: str) -> None:
    code, calls = measure(job)
    assert code == 0, (tmp_path / "out" / job / "log").read_text()
    own = [call[1:] for call in calls if call[0] == "onerec-trt"]
    assert own or job == "tests"
    for words in own:
        require_command(words)
        assert {word for word in words if "+kernels" in word} <= set(RECIPES)
    assert (tmp_path / "out" / job / "rc").read_text().strip() == "0"


def test_results_are_named_by_the_card_and_carry_the_commit(measure: Any, tmp_path: Path) -> None:
    _, calls = measure("moe", "recipe-fp8-row-block")
    (bench,) = (call for call in calls if "bench" in call)
    assert bench[bench.index("--out") + 1] == str(tmp_path / "out" / "moe" / "h200-moe.json")
    assert bench[bench.index("--commit") + 1] == "abc"
    copied = next(call for call in calls if call[0] == "cp" and call[-1].endswith("validation.json"))
    assert copied[-1] == str(tmp_path / "out" / "recipe-fp8-row-block" / "h200-4b-a0.5b-fp8-row-block-validation.json")


def test_a_job_that_fails_stops_no_other_and_shows_in_the_end(measure: Any, tmp_path: Path) -> None:
    code, calls = measure("operators", "no-such-job", "moe", FAILS="2")
    assert code == 1
    assert {call[1] for call in calls} == {"dev", "bench"}
    codes = {name: (tmp_path / "out" / name / "rc").read_text().strip() for name in ("operators", "no-such-job", "moe")}
    assert codes == {"operators": "2", "no-such-job": "1", "moe": "2"}


def test_the_page_names_it() -> None:
    assert "measure.sh" in (SCRIPT.parent / "README.md").read_text()
    assert re.search(r"measure\.sh OUT JOB", SCRIPT.read_text())
