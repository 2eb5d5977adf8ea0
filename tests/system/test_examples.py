"""Every command of examples/README.md, in its order, in a copy of the folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVER = EXAMPLES.parent / ".venv-server"
DATA, RUN, RECOMMEND, REPOSITORY, SERVE, ASK, PARITY = re.findall(r"```sh\n(.*?)\n```", (EXAMPLES / "README.md").read_text(), re.DOTALL)

Call = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples, without what earlier runs left."""
    copy = tmp_path_factory.mktemp("home") / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("data", "out", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def call(folder: Path) -> Call:
    """Run a command of the page there, with this environment's programs; gives its standard output."""
    programs = Path(sys.executable).parent

    def run(command: str) -> str:
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def finished(folder: Path, call: Call) -> Path:
    """The folder after the first two commands."""
    call(DATA)
    call(RUN)
    return folder


def test_the_commands_are_those_these_tests_know() -> None:
    assert [command.split()[:2] for command in (DATA, RUN, RECOMMEND, REPOSITORY, SERVE, ASK, PARITY)] == [
        ["python", "make_data.py"],
        ["onerec-trt", "run"],
        ["python", "recommend.py"],
        ["onerec-trt", "repository"],
        ["onerec-trt", "serve"],
        ["python", "ask.py"],
        ["python", "-m"],
    ]


def test_an_own_checkpoint_becomes_a_plan(finished: Path) -> None:
    assert (finished / "out/example/plans/sm89-b1-16-s2-16.plan").stat().st_size > 100_000
    assert "</html>" in (finished / "out/example/report.html").read_text()


def test_items_are_recommended(finished: Path, call: Call) -> None:
    lines = call(RECOMMEND).splitlines()
    for name in ("ann", "ben", "cem"):
        assert [line for line in lines if line.startswith(f"{name} (")], lines
    items = pq.read_table(finished / "out/items.parquet").to_pylist()
    assert [item["request"] for item in items] == [name for name in ("ann", "ben", "cem") for _ in range(16)]


def test_the_model_is_served(finished: Path, call: Call) -> None:
    """At free ports, since other tests serve at the usual ones meanwhile."""
    call(REPOSITORY)
    command = f"{SERVE.replace('../.venv-server', str(SERVER))} --http-port 0 --grpc-port 0 --metrics-port 0"
    program, *arguments = shlex.split(command)
    server = subprocess.Popen(
        [Path(sys.executable).parent / program, *arguments], cwd=finished, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith("serving on"))
        ports = dict(re.findall(r"(HTTP|gRPC) (\d+)", line))
        answers = {call(f"{ASK.replace('8000', ports['HTTP'])} {way}") for way in ("", "--shared-memory")}
        answers.add(call(f"{ASK.replace('8000', ports['gRPC'])} --grpc"))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    (answer,) = answers
    assert [each.split()[0] for each in answer.splitlines()] == ["ann", "ben"]


def test_parity_holds_in_ci(finished: Path, call: Call) -> None:
    assert "2 passed" in call(PARITY)
