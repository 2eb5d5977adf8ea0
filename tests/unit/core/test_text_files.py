"""Text of users is read as UTF-8, and what cannot be read is a typed error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import CheckpointError
from onerec_trt.core.text_files import read_text


def read(path: Path) -> str:
    return read_text(path, name="key map", error=CheckpointError, hint="give a file")


@pytest.mark.parametrize("encoding", ["C", "POSIX"])
def test_utf_8_is_read_whatever_the_locale_says(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_bytes("检查点 ✓".encode())
    code = f"import sys; from pathlib import Path; from {read_text.__module__} import read_text; read_text(Path(sys.argv[1]))"
    environment = os.environ | {"LC_ALL": encoding, "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, tmp_path / "a"], check=True, env=environment)


NOT_READABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none", "key map not found"),
    "a folder": (lambda folder: folder, "cannot be read: Is a directory"),
    "below a file": (lambda folder: folder / "file" / "x", "cannot be read: Not a directory"),
    "a name too long": (lambda folder: folder / ("a" * 300), "cannot be read: File name too long"),
    "a zero byte": (lambda folder: folder / "a\0b", "cannot be read: embedded null byte"),
    "links in a circle": (lambda folder: folder / "circle", "cannot be read: Too many levels of symbolic links"),
    "Latin-1": (lambda folder: folder / "latin", "not UTF-8: byte 3 is 0xe9"),
}


@pytest.mark.parametrize("case", NOT_READABLE)
def test_what_cannot_be_read_says_why(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "circle").symlink_to("circle")
    make, message = NOT_READABLE[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(make(tmp_path))
    assert caught.value.where == str(make(tmp_path))
    assert caught.value.hint
