"""Paths of users are made absolute where they enter, as a shell and the operating system would take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.core.errors import RecipeError
from onerec_trt.core.paths import absolute, lies_in, located, written_in_utf_8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `link` to `elsewhere/deep`."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("elsewhere/deep")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (".", ""),
        ("a", "a"),
        ("./a/../b", "b"),
        ("link", "link"),
        ("link/..", "elsewhere"),
        ("link/../model", "elsewhere/model"),
        ("link/model", "elsewhere/deep/model"),
        ("a b/检查点", "a b/检查点"),
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("$DATA/a", "/data/a"),
        ("${DATA}/a", "/data/a"),
        ("a~b", "a~b"),
        ("/", "/"),
    ],
)
def test_a_path_is_what_the_operating_system_takes_it_for(folder: Path, path: str, meant: str) -> None:
    assert located(path) == folder / meant
    assert located(path, Path("/base" if meant.startswith("/") else folder)) == folder / meant


@pytest.mark.parametrize(
    ("path", "message"), [("", "empty"), ("a\0", "zero byte"), ("$NOT_SET", "NOT_SET is not set"), ("~nobody-here/a", "home folder")]
)
def test_a_path_that_names_nothing_is_refused(folder: Path, path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        located(path)
    assert caught.value.hint


def test_where_the_working_directory_is_gone_absolute_paths_are_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert located(folder / "link" / "..") == folder / "elsewhere"
    with pytest.raises(RecipeError, match="working directory is gone") as caught:
        located("a")
    assert "absolute path" in caught.value.hint


def test_the_last_part_may_stay_a_link(folder: Path) -> None:
    assert absolute(Path("link")) == folder / "link"


@pytest.mark.parametrize(
    ("path", "inside"), [("elsewhere", True), ("elsewhere/a", True), ("link", True), ("link/a", True), (".", False), ("elsewhere2", False)]
)
def test_links_lead_inside_too(folder: Path, path: str, inside: bool) -> None:
    assert lies_in(folder / path, folder / "elsewhere") is inside


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "latin-1", "ascii"])
def test_a_path_in_a_utf_8_file_names_the_same_bytes_in_every_locale(encoding: str) -> None:
    path = written_in_utf_8(Path("检查点/café"), encoding)
    assert str(path).encode(encoding, "surrogateescape") == "检查点/café".encode()
