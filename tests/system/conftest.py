"""The command line in processes of their own, which can be interrupted, killed and starved of disk space."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

PATIENCE_S = 180.0
# What a command imports only when it comes to it.
IMPORTED_LATE = (
    "torch._dynamo",
    "modelopt.torch.quantization",
    "torch.onnx._internal.exporter._core",
    "onnxruntime",
    "polygraphy.comparator",
)
# Runs in the child; given as text because test modules cannot be imported by name there.
CHILD = """
import os, resource, sys
for stream, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
if cwd is not None:
    os.chdir(cwd)
if file_limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
sys.argv = ["onerec-trt", *arguments]
from onerec_trt.tools.cli import main
main()
"""


class Ended(NamedTuple):
    """How a command ended; `code` is negative for a signal."""

    code: int
    out: str
    err: str


class Command:
    """One `onerec-trt ...` in a process of its own."""

    def __init__(self, context: ForkServerContext, folder: Path, arguments: tuple[object, ...], file_limit: int | None, cwd: Path | None):
        self._out, self._err = folder / "stdout", folder / "stderr"
        given = {"arguments": [*map(str, arguments)], "out": str(self._out), "err": str(self._err), "file_limit": file_limit, "cwd": cwd}
        self._process: ForkServerProcess = context.Process(target=exec, args=(CHILD, given))
        self._process.start()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until a condition holds; the command ending before that is a failure of the test."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.is_alive(), f"ended too early: {self.ended()}"
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.002)

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ended(self) -> Ended:
        self._process.join(PATIENCE_S)
        assert self._process.exitcode is not None, "the command does not end"
        return Ended(self._process.exitcode, self._out.read_text(), self._err.read_text())

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


Start = Callable[..., Command]


@pytest.fixture(scope="session")
def _forkserver() -> ForkServerContext:
    """Every command is forked from one process that has imported the package: a real process each, without seconds of imports."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onerec_trt.tools.commands", *IMPORTED_LATE])
    return context


@pytest.fixture
def start(_forkserver: ForkServerContext, tmp_path: Path) -> Iterator[Start]:
    """Start a command; `file_limit` is the most bytes any file may have, `cwd` the working directory."""
    commands: list[Command] = []

    def begin(*arguments: object, file_limit: int | None = None, cwd: Path | None = None) -> Command:
        folder = tmp_path / f"command{len(commands)}"
        folder.mkdir()
        commands.append(Command(_forkserver, folder, arguments, file_limit, cwd))
        return commands[-1]

    yield begin
    for command in commands:
        command.close()


@pytest.fixture
def run(start: Start) -> Callable[..., Ended]:
    """Run a command to its end."""
    return lambda *arguments, **options: start(*arguments, **options).ended()


def tree_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, leftovers of killed writers too."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def partial_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".partial-*"))


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    return tree_of


@pytest.fixture(scope="session")
def partials() -> Callable[[Path], list[str]]:
    """Names of everything half-written below a folder."""
    return partial_names
