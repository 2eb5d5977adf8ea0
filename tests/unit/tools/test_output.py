"""Output that no terminal, pipe or disk can make fail with a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from onerec_trt.tools import cli


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_no_run_fails_for_a_character(monkeypatch: pytest.MonkeyPatch, world: Path, encoding: str) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["onerec-trt", "validate", str(world / "fp16.yaml")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = {name: stream.buffer.getvalue().decode(encoding) for name, stream in streams.items() if not stream.flush()}  # type: ignore
    assert "gates passed" in said["stdout"]
    assert ("✓" if encoding == "utf-8" else "\\u2713") in said["stderr"]


def test_a_name_that_is_no_utf_8_is_printed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run([sys.executable, "-P", "-m", "onerec_trt.tools.cli", "inspect", folder], capture_output=True)
    assert done.returncode == 1
    assert b"ArtifactError: this is no artifact" in done.stderr
    assert b"caf\\udce9" in done.stderr


def test_standard_output_on_a_full_disk_is_a_typed_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-P", "-m", "onerec_trt.tools.cli", "--version"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"standard output cannot be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["folder", "file/x", "a" * 300, "no-permission/x"])
def test_a_path_the_operating_system_refuses(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, path: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["onerec-trt", "calibrate", str(tmp_path / path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" not in said
    assert str(tmp_path / path) in said
    assert "to do: " in said
