"""Artifacts appear whole or not at all, whatever stops the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core import artifacts
from onerec_trt.core.artifacts import (
    _HOST,
    atomic_file,
    atomic_folder,
    files_in,
    json_object,
    read_json,
    restore_interrupted_swap,
    write_json,
)
from onerec_trt.core.errors import ArtifactError
from safetensors import SafetensorError
from safetensors.numpy import save_file


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_until_killed(program: str, *arguments: Path) -> None:
    """Run a program in a child process until it says 'ready', then kill -9 it there."""
    child = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()


def write_text(path: Path, text: str, *, then: BaseException | None = None) -> None:
    """Write a file atomically; raise `then` in the middle, if given."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)
        if then:
            raise then


def write_folder(path: Path, name: str, text: str, *, then: BaseException | None = None) -> None:
    """Write a folder with one file atomically; raise `then` in the middle, if given."""
    with atomic_folder(path) as temporary:
        (temporary / name).write_text(text)
        if then:
            raise then


def write_to_full_disk(writer: Callable[[Path], AbstractContextManager[Path]], path: Path) -> None:
    with writer(path) as temporary:
        file = temporary / "weights" if temporary.is_dir() else temporary
        file.symlink_to("/dev/full")  # the kernel answers each write with ENOSPC
        file.write_text("data")


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_replaces_the_earlier_one_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with atomic_file(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert snapshot(path.parent) == {"a.txt": b"two"}


def test_an_exception_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "half", then=KeyboardInterrupt())
    assert snapshot(tmp_path) == {"a.txt": b"earlier"}


def test_an_exception_leaves_the_earlier_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    write_folder(path, "a", "earlier")
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, "b", "half", then=KeyboardInterrupt())
    assert snapshot(tmp_path) == {"stage/a": b"earlier"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    for name in ("a", "b"):
        with atomic_folder(path) as temporary:
            assert list(temporary.iterdir()) == []
            (temporary / name).write_text(name)
    assert snapshot(tmp_path) == {"stage/b": b"b"}


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    earlier = os.umask(0o022)
    yield os.umask
    os.umask(earlier)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_whoever_writes_the_umask_decides_who_reads(
    tmp_path: Path, umask: Callable[[int], object], mask: int, file: int, folder: int
) -> None:
    umask(mask)
    with atomic_folder(tmp_path / "stage") as temporary:
        (temporary / "sub").mkdir(mode=0o700)
        save_file({"x": np.zeros(1)}, temporary / "sub" / "weights.safetensors")
        (temporary / "link").symlink_to("sub")
    with atomic_file(tmp_path / "file") as temporary:
        save_file({"x": np.zeros(1)}, temporary)
    with atomic_file(tmp_path / "library.so") as temporary:
        temporary.touch(mode=0o755)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if not p.is_symlink()}
    assert modes == {
        "stage": folder,
        "stage/sub": folder,
        "stage/sub/weights.safetensors": file,
        "file": file,
        "library.so": folder,
    }


@pytest.mark.parametrize("path", [".", "..", "/", "./a/.."])
def test_a_path_without_a_name_of_its_own_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    (tmp_path / "a" / "a").mkdir()
    restore_interrupted_swap(Path(path))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "a", "b"]


WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from onerec_trt.core.artifacts import atomic_file, atomic_folder
path = Path(sys.argv[1])
writer = atomic_folder if path.is_dir() else atomic_file
with writer(path) as temporary:
    (temporary / "weights" if path.is_dir() else temporary).write_text("half of")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_9_inside_a_folder_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    write_folder(path, "weights", "earlier")
    run_until_killed(WRITE_AND_WAIT, path)
    assert snapshot(path) == {"weights": b"earlier"}
    assert len(list(tmp_path.iterdir())) == 2, "the killed writer leaves a temporary sibling"
    write_folder(path, "weights", "new")
    assert snapshot(tmp_path) == {"stage/weights": b"new"}, "the next writer removes it"


def test_kill_9_inside_a_file_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_text("earlier")
    run_until_killed(WRITE_AND_WAIT, path)
    assert path.read_text() == "earlier"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert snapshot(tmp_path) == {"plan": b"new"}


KILLED_BETWEEN_RENAMES = """
import os, sys, time
from pathlib import Path
from onerec_trt.core import artifacts
real, calls = os.replace, []
def replace(source, target):
    if calls:
        print("ready", flush=True)
        time.sleep(60)
    calls.append(source)
    real(source, target)
artifacts.os.replace = replace
with artifacts.atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "weights").write_text("new")
"""


def test_kill_9_between_the_two_renames_of_a_swap_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    write_folder(path, "weights", "earlier")
    run_until_killed(KILLED_BETWEEN_RENAMES, path)
    assert not path.exists()
    restore_interrupted_swap(path)
    assert snapshot(path) == {"weights": b"earlier"}
    restore_interrupted_swap(path)
    assert snapshot(path) == {"weights": b"earlier"}


def test_a_writer_that_fails_after_a_killed_swap_leaves_the_earlier_content(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    write_folder(path, "weights", "earlier")
    run_until_killed(KILLED_BETWEEN_RENAMES, path)
    with pytest.raises(ZeroDivisionError), artifacts.atomic_folder(path):
        _ = 1 // 0
    assert snapshot(tmp_path) == {"stage/weights": b"earlier"}


def test_a_reader_waits_for_a_swap_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage"
    write_folder(path, "weights", "earlier")
    real, reader = os.replace, threading.Thread(target=restore_interrupted_swap, args=(path,))

    def slowly(source: Path, target: Path) -> None:
        real(source, target)
        if Path(source) == path:
            reader.start()
            reader.join(0.3)
            assert reader.is_alive()

    monkeypatch.setattr(os, "replace", slowly)
    write_folder(path, "weights", "new")
    reader.join(10)
    assert snapshot(tmp_path) == {"stage/weights": b"new"}


def test_writers_of_one_folder_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, problems = tmp_path / "stage", []
    real = artifacts._remove

    def slowly(target: Path) -> None:
        time.sleep(0.002)
        real(target)

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_folder(path, "weights", text)
        except OSError as problem:
            problems.append(problem)

    monkeypatch.setattr(artifacts, "_remove", slowly)
    writers = [threading.Thread(target=write, args=(text,)) for text in ("one", "two", "three")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert problems == []
    assert list(snapshot(tmp_path)) == ["stage/weights"]


def test_a_swap_that_fails_halfway_brings_the_earlier_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage"
    write_folder(path, "weights", "earlier")
    real = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if Path(target) == path and not Path(source).name.endswith("-old"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(path, "weights", "new")
    assert snapshot(tmp_path) == {"stage/weights": b"earlier"}


def test_a_writer_leaves_the_temporaries_of_others_alone(tmp_path: Path) -> None:
    kept = {
        f".partial-fp8-{os.getppid()}.0@{_HOST}": "of a process that still runs",
        f".partial-fp8-{dead_pid()}.0@another": "of a process on another machine, whose number says nothing here",
        f".partial-fp8-row-{dead_pid()}.0@{_HOST}": "of another artifact",
        ".partial-fp8-row-old": "the earlier content of another artifact, in the middle of its swap",
    }
    for name, content in kept.items():
        (tmp_path / name).write_text(content)
    for owner in (dead_pid(), os.getpid()):
        (tmp_path / f".partial-fp8-{owner}.77@{_HOST}").write_text("left by a dead writer of this artifact")
    write_json(tmp_path / "fp8", {})
    assert {p.name for p in tmp_path.iterdir()} == {*kept, "fp8"}


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as outer:
        outer.write_text("outer")
        with atomic_file(tmp_path / "a") as inner:
            inner.write_text("inner")
        assert (tmp_path / "a").read_text() == "inner"
    assert snapshot(tmp_path) == {"a": b"outer"}


def test_a_full_disk_is_an_artifact_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("earlier")
    with pytest.raises(ArtifactError, match="disk is full") as caught:
        write_to_full_disk(atomic_file, path)
    assert caught.value.where == str(path)
    assert "free space" in caught.value.hint
    assert snapshot(tmp_path) == {"a": b"earlier"}


def test_a_full_disk_inside_a_folder_is_an_artifact_error(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    with pytest.raises(ArtifactError, match="disk is full"):
        write_to_full_disk(atomic_folder, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_may_not_be_written_is_an_artifact_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(ArtifactError, match="cannot write") as caught:
        write_text(tmp_path / "a", "data", then=OSError(number, os.strerror(number)))
    assert "choose an output folder" in caught.value.hint


def test_other_os_errors_are_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a", "data", then=OSError(errno.EIO, os.strerror(errno.EIO)))


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ArtifactError), (errno.EACCES, ArtifactError), (errno.EIO, SafetensorError)])
def test_what_safetensors_says_in_words_is_understood(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    words = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    with pytest.raises(kind):
        write_text(tmp_path / "a", "data", then=SafetensorError(words))


def test_files_in_leaves_out_unfinished_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / ".partial-stage-12").mkdir()
    (tmp_path / ".partial-stage-12" / "weights").write_text("half")
    (tmp_path / ".partial-a-12").write_text("half")
    (tmp_path / "a").write_text("whole")
    assert files_in(tmp_path) == [tmp_path / "a"]


def test_json_is_written_in_one_form_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": [1, 2.5, None]}


def test_json_with_nan_is_refused_and_the_earlier_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"gate": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"gate": float("nan")})
    assert read_json(tmp_path / "a.json") == {"gate": 1.0}


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 10_000])
def test_bad_json_is_an_artifact_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    assert json_object(tmp_path / "a.json") is None


@pytest.mark.parametrize(("content", "found"), [('{"a": 1}', {"a": 1}), ("[1]", None), ("null", None)])
def test_of_json_that_may_be_anybodys_objects_alone_are_read(tmp_path: Path, content: str, found: dict[str, int] | None) -> None:
    (tmp_path / "a.json").write_text(content)
    assert json_object(tmp_path / "a.json") == found
    assert json_object(tmp_path / "absent.json") is None


def test_absent_json_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not found"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_file_takes_the_place_of_files_only(tmp_path: Path, kind: str) -> None:
    """As the administrator a rename would put a file in the place of /dev/null."""
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ArtifactError, match="lies where a file is to be written"):
        write_text(path, "new")
    assert not path.is_file()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("parent", ["file", "file/below", "loop", "n" * 300, "/proc/nothing"])
def test_a_place_that_cannot_be_is_a_typed_error(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError) as caught:
        write_text(tmp_path / parent / "out.json", "new")
    assert "output path" in caught.value.hint
    assert (tmp_path / "file").read_text() == "mine"
