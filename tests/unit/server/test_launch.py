"""Starting a server: which one, with which arguments, and what earlier ones left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.server.launch.control import Control
from onerec_trt.server.launch.flags import Endpoints, exit_timeout_s, launch_line, listening_arguments, server_arguments
from onerec_trt.server.launch.installation import find_server
from onerec_trt.server.launch.processes import end_with_parent, stubs
from onerec_trt.server.launch.shared_memory import region_prefix, remove_leftovers
from onerec_trt.server.python_backend import orphan_watch
from onerec_trt.server.repository.add import Options, add_version
from onerec_trt.server.repository.store import Repository

from .plans import prove, write_plan
from .process_table import runs


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(stat.S_IRWXU)
    return path


def wheel(folder: Path, version: str) -> Path:
    program(folder / "pytriton/tritonserver/bin/tritonserver")
    program(folder / "pytriton/tritonserver/backends/python/libtriton_python.so")
    program(folder / f"pytriton/tritonserver/python_backend_stubs/{version}/triton_python_backend_stub")
    return folder


def test_a_server_is_found_on_path_or_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ArtifactError, match="Triton Inference Server is not installed"):
        find_server(None, tmp_path)
    there = program(tmp_path / "bin" / "tritonserver")
    assert find_server(None, tmp_path).program == there
    assert find_server(there, tmp_path).environment()["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), str(tmp_path / "bin")]
    with pytest.raises(ArtifactError, match="this is no Triton Inference Server"):
        find_server(tmp_path / "bin", tmp_path)


def test_a_wheels_python_backend_is_put_beside_its_stub(tmp_path: Path) -> None:
    found = find_server(wheel(tmp_path / "wheel", f"{sys.version_info.major}.{sys.version_info.minor}"), tmp_path / "working")
    assert found.backends is not None
    assert sorted(path.name for path in (found.backends / "python").iterdir()) == ["libtriton_python.so", "triton_python_backend_stub"]
    assert str(tmp_path / "wheel" / "nvidia_pytriton.libs") in found.environment()["LD_LIBRARY_PATH"].split(os.pathsep)
    with pytest.raises(ArtifactError, match="no Python backend for Python"):
        find_server(wheel(tmp_path / "other", "2.7"), tmp_path / "elsewhere")


def test_a_plan_with_kernels_may_run_its_code_only_in_the_stock_backend(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    plans = {name: prove(write_plan(tmp_path / name, plugins=name == "kernels")) for name in ("kernels", "native")}
    stock, native, python = (
        add_version(repository, plans[plan], Options(flavor, name=name))  # type: ignore[arg-type]
        for name, plan, flavor in (("a", "kernels", "tensorrt"), ("b", "native", "tensorrt"), ("c", "kernels", "python"))
    )
    allowed = "--backend-config=tensorrt,version-compatible=true"
    assert allowed in server_arguments(repository.path, [native, stock])
    assert allowed not in server_arguments(repository.path, [native, python])
    line = launch_line(Path("/models"), [stock, native])
    assert line == (
        "tritonserver --model-repository=/models --model-control-mode=explicit --disable-auto-complete-config --exit-timeout-secs=11 "
        f"{allowed} --load-model=a --load-model=b --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1"
    )
    assert shlex.split(launch_line(Path("/my models"), [stock]))[1] == "--model-repository=/my models"


def test_a_server_has_time_to_end_all_its_instances_one_after_the_other(tmp_path: Path) -> None:
    repository, plan = Repository(tmp_path / "repository"), prove(write_plan(tmp_path / "plan"))
    one, sixteen = (add_version(repository, plan, Options("python", name=f"on-{gpus}", gpus=gpus, instances=2)) for gpus in (1, 8))
    answering = exit_timeout_s([])
    assert answering > 0, "for requests in flight"
    assert exit_timeout_s([one]) - answering > 2 * 1.4, "seen on a GPU"
    assert exit_timeout_s([sixteen]) - answering == 8 * (exit_timeout_s([one]) - answering)
    assert f"--exit-timeout-secs={exit_timeout_s([one, sixteen])}" in server_arguments(repository.path, [one, sixteen])


def test_apis_that_change_a_server_are_restricted() -> None:
    endpoints = Endpoints("127.0.0.1", 1, 2, 3)
    closed = listening_arguments(endpoints, "secret", shared_memory=False)
    assert "--http-restricted-api=model-repository,trace,logging,shared-memory:onerec-trt-control=secret" in closed
    assert "--grpc-restricted-protocol=model-repository,trace,logging,shared-memory:onerec-trt-control=secret" in closed
    assert "--http-restricted-api=model-repository,trace,logging:onerec-trt-control=secret" in listening_arguments(
        endpoints, "secret", shared_memory=True
    )
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(closed)


def test_another_program_at_the_port_is_not_taken_for_the_server() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        assert not Control(Endpoints("127.0.0.1", other.server_port, 0, 0), "key").live()
        thread.join()
    assert not Control(Endpoints("127.0.0.1", other.server_port, 0, 0), "key").live(), "nothing listens there any more"


def test_shared_memory_of_servers_that_are_gone_is_removed_and_no_other(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine, gone, alive = region_prefix(), region_prefix(ended.pid), region_prefix(os.getppid())
    for name in (f"{mine}a", f"{gone}b", f"{alive}c", "triton_python_backend_shm_region_d", f"x{gone}e"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {f"{alive}c", "triton_python_backend_shm_region_d", f"x{gone}e"}


def test_what_another_user_left_stops_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / f"{region_prefix()}{name}").touch()
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith("a"):
            raise PermissionError(errno.EPERM, "Operation not permitted")  # /dev/shm has the sticky bit
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert remove_leftovers(tmp_path) == 1
    assert [path.name[-1] for path in tmp_path.iterdir()] == ["a"]


def test_processes_that_are_no_stubs_do_not_count() -> None:
    child = subprocess.Popen(["sleep", "20"])
    try:
        assert stubs(os.getpid()) == {}
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("watched", ["the kernel", "a thread"])
def test_a_child_ends_with_its_parent(watched: str) -> None:
    """The parent starts a child that sleeps for long, says its number, and is killed."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def child() -> None:
        end_with_parent() if watched == "the kernel" else orphan_watch.end_with_parent()
        there.send(os.getpid())
        time.sleep(60)

    def parent() -> None:
        process = context.Process(target=child)
        process.start()
        process.join()

    process = context.Process(target=parent)
    process.start()
    pid = here.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 20
    while runs(pid):
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.02)
