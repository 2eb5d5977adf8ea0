"""The timing cache's file: keyed by the machine, merged under a lock, whole at every moment."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from onerec_trt.builders import timing_cache
from onerec_trt.builders.timing_cache import cache_file, digest, read_cache, write_cache
from onerec_trt.core.errors import ArtifactError, BuildError
from onerec_trt.runtime.machine import Machine

MACHINE = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.1", gpu="NVIDIA H200")


def _merge(present: bytes, own: bytes) -> bytes:
    return b",".join(sorted(set(filter(None, (present + b"," + own).split(b",")))))


@pytest.mark.parametrize(
    "change", [{"library_version": "10.7.0"}, {"compute_capability": "8.9"}, {"driver": "590"}, {"gpu": "NVIDIA H100"}]
)
def test_each_machine_has_its_file(change: dict[str, str]) -> None:
    assert cache_file(Path("c"), MACHINE) != cache_file(Path("c"), replace(MACHINE, **change))  # type: ignore[arg-type]


def test_the_first_build_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.cache"
    assert read_cache(path) == b""
    assert digest(b"") is None
    assert write_cache(path, b"a", b"", _merge) == b"a"
    assert read_cache(path) == b"a"
    assert not list(path.parent.glob(".partial-*"))


def test_what_others_stored_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"a,c")
    assert write_cache(path, b"a,b", b"a", _merge) == b"a,b,c"
    assert write_cache(path, b"a,b,c,d", b"a,b,c", lambda *_: pytest.fail("nothing to merge")) == b"a,b,c,d"


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    assert write_cache(tmp_path / "absent" / "a.cache", b"a", b"a", _merge) == b""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be kept") as caught:
        write_cache(tmp_path / "file" / "a.cache", b"a", b"", _merge)
    assert caught.value.where == str(tmp_path / "file" / "a.cache")
    assert "build.timing_cache" in caught.value.hint


@pytest.mark.parametrize("place", ["file/a.cache", "folder"])
def test_what_cannot_be_read_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="cannot be read") as caught:
        read_cache(tmp_path / place)
    assert caught.value.where == str(tmp_path / place)
    assert "build.timing_cache" in caught.value.hint


def test_builds_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    names = [f"{number:02}".encode() for number in range(16)]
    builds = [threading.Thread(target=write_cache, args=(path, name, b"", _merge)) for name in names]
    for each in builds:
        each.start()
    for each in builds:
        each.join()
    assert read_cache(path).split(b",") == names


def test_a_lock_that_is_never_released_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timing_cache, "_LOCK_SECONDS", 0.05)
    path = tmp_path / "a.cache"
    with FileLock(f"{path}.lock"), pytest.raises(BuildError, match="locked by another build") as caught:
        write_cache(path, b"a", b"", _merge)
    assert caught.value.where == f"{path}.lock"
    assert not path.exists()
