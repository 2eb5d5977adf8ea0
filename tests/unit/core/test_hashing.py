"""A hash is that of the content, however it is found: large files side by side, and from memory only while nobody writes to them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from onerec_trt.core import hashing
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.hashing import sha256, sha256_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every file of ten bytes counts as large; gives the number of bytes of each that was really hashed."""
    sizes: list[int] = []
    real = hashlib.sha256

    class Counted:
        def __init__(self, content: bytes = b"") -> None:
            self._digest = real(content)

        def update(self, content: bytes) -> None:
            sizes.append(len(content))
            self._digest.update(content)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr(hashing, "LARGE", 10)
    monkeypatch.setattr(hashing.hashlib, "sha256", Counted)
    return sizes


def _settled(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that was written a while ago; its hash."""
    path.write_bytes(content)
    monkeypatch.setattr(hashing.time, "time_ns", lambda: path.stat().st_ctime_ns + 5 * 10**9)
    return hashlib.new("sha256", content).hexdigest()


def test_a_large_file_is_read_once_as_long_as_it_stays(tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    expected = _settled(path, b"0123456789", monkeypatch)
    assert [sha256(path), sha256(path)] == [expected] * 2
    assert read == [10]


def test_a_file_of_the_same_size_and_age_is_another_one(tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    _settled(path, b"0123456789", monkeypatch)
    before, first = path.stat(), sha256(path)
    time.sleep(0.02)  # the clock of a file system ticks
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256(path) != first


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    _settled(path, b"0123456789", monkeypatch)
    monkeypatch.setattr(hashing.time, "time_ns", lambda: path.stat().st_ctime_ns)
    assert sha256(path) == sha256(path)
    assert read == [10, 10]


def test_many_paths_at_once_have_the_hashes_they_have_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "LARGE", 10)
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}").write_bytes(bytes([number]) * (8 + number))
    paths = {"whole": folder, "some": (folder / "1", folder / "3"), "one": folder / "2"}
    assert sha256_of(paths) == {name: sha256(path) for name, path in paths.items()}
    assert len(set(sha256_of(paths).values())) == 3


def test_a_missing_file_among_many_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("here")
    with pytest.raises(ArtifactError, match="file not found") as caught:
        sha256_of({"here": tmp_path / "here", "there": tmp_path / "there"})
    assert caught.value.where == str(tmp_path / "there")


def test_sha256_of_a_file_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_folder_follows_names_and_contents_only(tmp_path: Path) -> None:
    for copy in ("x", "y"):
        (tmp_path / copy / "sub").mkdir(parents=True)
        (tmp_path / copy / "sub" / "a").write_text("1")
        (tmp_path / copy / "b").write_text("2")
    before = sha256(tmp_path / "x")
    assert before == sha256(tmp_path / "y")
    (tmp_path / "y" / "b").write_text("3")
    assert sha256(tmp_path / "y") != before
    (tmp_path / "x" / "b").rename(tmp_path / "x" / "c")
    assert sha256(tmp_path / "x") != before


def test_sha256_of_nothing_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not found"):
        sha256(tmp_path / "absent")


def test_what_cannot_be_read_is_named_when_it_is_hashed() -> None:
    with pytest.raises(ArtifactError, match="the file cannot be read: ") as caught:
        sha256(Path("/proc/self/mem"))
    assert caught.value.where == "/proc/self/mem"
