"""Every way a build's child process can end: well, refused, aborted, killed, or with its parent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onerec_trt.builders import child
from onerec_trt.builders.child import PhaseTree, build_in_child
from onerec_trt.builders.functions import inline_functions
from onerec_trt.builders.worker import Job, Log
from onerec_trt.core.errors import BuildError

Make = Callable[..., onnx.ModelProto]
MakeJob = Callable[[int], Job]
PROFILE = {"features": ((1, 1, 64), (4, 16, 64), (8, 32, 64)), "lengths": ((1, 3), (4, 3), (8, 3))}


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    return _job(tmp_path, tmp_path / "a.plan")


def _job(folder: Path, plan: Path) -> MakeJob:
    def make(events: int) -> Job:
        graph, beside = folder / "native.onnx", folder / "model.onnx"
        return Job(
            graph=graph, beside=beside, plan=plan, target="tensorrt-rtx", compute_capability="8.9", profiles=[PROFILE], events=events
        )

    return make


def _instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Runs a program in place of the worker; it has `job` and can `send` events."""
    preamble = "import json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n"
    send = "def send(**event): os.write(job['events'], (json.dumps(event) + chr(10)).encode())\n"
    monkeypatch.setattr(child, "WORKER", (sys.executable, "-c", preamble + send + program))


def test_builds_in_another_process(tmp_path: Path, job: MakeJob, make_model: Make) -> None:
    (tmp_path / "native.onnx").write_bytes(inline_functions(make_model()).SerializeToString())
    built = build_in_child(job, tmp_path / "builder.log", "build")
    assert built["version"]
    assert (tmp_path / "a.plan").stat().st_size > 0
    assert "[INFO]" in (tmp_path / "builder.log").read_text()


def test_what_tensorrt_refuses_is_said_in_its_words(tmp_path: Path, job: MakeJob, make_model: Make) -> None:
    (tmp_path / "native.onnx").write_bytes(make_model("Mystery").SerializeToString())
    with pytest.raises(BuildError, match="operator Mystery") as caught:
        build_in_child(job, tmp_path / "builder.log", "build sm89")
    assert "Plugin not found" in caught.value.what
    assert caught.value.where == f"build sm89, {tmp_path / 'model.onnx'}"


def test_unusual_warnings_come_back_once_and_usual_ones_not(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for message in ("ModelImporter.cpp:1071: Make sure input lengths has Int64 binding.", "a tactic was skipped", "a tactic was skipped"):
        log("WARNING", message)
    log("INFO", "as ever")
    assert log.warnings == ["a tactic was skipped"]
    assert capsys.readouterr().out.count("[WARNING]") == 3


def test_a_plan_whose_maximum_cannot_be_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    _instead(monkeypatch, "send(event='built', warnings=['a', 'Profile kMAX values are not self-consistent. x: tensor volume exceeds 1'])")
    with pytest.raises(BuildError, match="the maximum of a profile cannot be run\nProfile kMAX") as caught:
        build_in_child(job, tmp_path / "builder.log", "build sm89")
    assert "lower the maxima" in caught.value.hint


@pytest.mark.parametrize(("name", "hint"), [("SIGABRT", "TensorRT aborted"), ("SIGSEGV", "TensorRT aborted"), ("SIGKILL", "more memory")])
def test_a_child_that_dies_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob, name: str, hint: str
) -> None:
    _instead(monkeypatch, f"print('[INFO] fine'); print('[ERROR] the last words', flush=True); os.kill(os.getpid(), signal.{name})")
    with pytest.raises(BuildError, match=rf"ended by {name}\n\[ERROR\] the last words") as caught:
        build_in_child(job, tmp_path / "builder.log", "build")
    assert hint in caught.value.hint


def test_a_child_that_ends_without_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    _instead(monkeypatch, "raise SystemExit(0)")
    with pytest.raises(BuildError, match="status 0"):
        build_in_child(job, tmp_path / "builder.log", "build")
    _instead(monkeypatch, "raise RuntimeError('unforeseen')")
    with pytest.raises(BuildError, match=r"status 1(.|\n)*RuntimeError: unforeseen"):
        build_in_child(job, tmp_path / "builder.log", "build")


def test_a_child_that_dies_after_its_last_event_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    _instead(monkeypatch, "send(event='built'); os.abort()")
    with pytest.raises(BuildError, match="SIGABRT"):
        build_in_child(job, tmp_path / "builder.log", "build")


def test_a_child_that_never_reads_its_job_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    monkeypatch.setattr(child, "WORKER", (sys.executable, "-c", "import os; os.close(0); os._exit(3)"))
    with pytest.raises(BuildError, match="status 3"):
        build_in_child(job, tmp_path / "builder.log", "build")


def test_a_child_that_dies_in_the_middle_of_an_event_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    _instead(monkeypatch, """os.write(job['events'], b'{"event": "bui'); os.kill(os.getpid(), signal.SIGKILL)""")
    with pytest.raises(BuildError, match="SIGKILL"):
        build_in_child(job, tmp_path / "builder.log", "build")


def test_what_the_operating_system_refuses_the_child_names_the_file(tmp_path: Path, job: MakeJob) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        build_in_child(job, tmp_path / "builder.log", "build")
    assert caught.value.filename == str(tmp_path / "native.onnx")


def test_an_error_of_the_operating_system_without_a_number_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    refusing = "from onerec_trt.builders import worker\ndef refuse(*_):\n    raise OSError('cannot load')\n"
    program = f"{refusing}worker._build = refuse\nraise SystemExit(worker.main())"
    monkeypatch.setattr(child, "WORKER", (sys.executable, "-P", "-c", program))
    with pytest.raises(BuildError, match="cannot load"):
        build_in_child(job, tmp_path / "builder.log", "build")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_os_error(tmp_path: Path, make_model: Make) -> None:
    (tmp_path / "native.onnx").write_bytes(inline_functions(make_model()).SerializeToString())
    with pytest.raises(OSError, match="No space left") as caught:
        build_in_child(_job(tmp_path, Path("/dev/full")), tmp_path / "builder.log", "build")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):  # the log, not the plan
        build_in_child(_job(tmp_path, tmp_path / "a.plan"), Path("/dev/full"), "build")


def test_ctrl_c_kills_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: MakeJob) -> None:
    pid_file = tmp_path / "pid"
    _instead(
        monkeypatch,
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); send(event='started', phase='a', parent='', steps=2); signal.pause()",
    )
    interrupter = threading.Thread(target=_interrupt_when_written, args=(pid_file,))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in a shell's background ignore it
    try:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            build_in_child(job, tmp_path / "builder.log", "build")
        interrupter.join()
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def _interrupt_when_written(pid_file: Path) -> None:
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    child_process = Path("/proc", pid_file.read_text())
    while child_process.exists():  # again where an interrupt meets code that cannot raise it, such as a callback of the garbage collector
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        for _ in range(500):
            if child_process.exists():
                time.sleep(0.01)


def test_the_child_ends_with_its_parent() -> None:
    program = "import time, threading\nfrom onerec_trt.builders.worker import exit_with_parent\n"
    program += "threading.Thread(target=exit_with_parent, daemon=True).start()\nprint('up', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=10) == 1


def test_nested_phases_add_up() -> None:
    tree = PhaseTree()
    assert tree.fraction() == 0
    tree.update({"event": "started", "phase": "all", "parent": "", "steps": 2})
    tree.update({"event": "stepped", "phase": "all"})
    tree.update({"event": "started", "phase": "part", "parent": "all", "steps": 4})
    tree.update({"event": "stepped", "phase": "part"})
    assert tree.fraction() == pytest.approx((1 + 0.25) / 2)
    tree.update({"event": "finished", "phase": "part"})
    tree.update({"event": "stepped", "phase": "all"})
    assert tree.fraction() == 1


def test_odd_phases_do_no_harm() -> None:
    tree = PhaseTree()
    tree.update({"event": "stepped", "phase": "never started"})
    tree.update({"event": "finished", "phase": "never started"})
    tree.update({"event": "started", "phase": "empty", "parent": "", "steps": 0})
    tree.update({"event": "started", "phase": "own parent", "parent": "own parent", "steps": 1})
    assert tree.fraction() == 0
