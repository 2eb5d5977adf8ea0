"""Headers are found where they may lie, and their absence says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.builders import headers
from onerec_trt.core.errors import BuildError, MissingExtraError


def _headers(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(version)
    return folder


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(headers.INCLUDE_VARIABLE, raising=False)
    monkeypatch.setattr(headers, "_SYSTEM", (str(tmp_path / "usr"),))
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.parametrize("version", ["#define NV_TENSORRT_MAJOR 10 //!< major\n", "#define TRT_MAJOR_ENTERPRISE 10\n"])
def test_the_environment_variable_counts_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    _headers(tmp_path / "usr", "#define NV_TENSORRT_MAJOR 10\n")
    wish = _headers(tmp_path / "mine", version)
    monkeypatch.setenv(headers.INCLUDE_VARIABLE, str(wish))
    assert headers.tensorrt_headers(10) == wish


@pytest.mark.parametrize(
    ("version", "message"), [(None, "has no TensorRT headers"), ("#define NV_TENSORRT_MAJOR 11\n", "headers of TensorRT 11")]
)
def test_a_wrong_environment_variable_is_no_wish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, message: str
) -> None:
    _headers(tmp_path / "usr", "#define NV_TENSORRT_MAJOR 10\n")
    wish = tmp_path / "none" if version is None else _headers(tmp_path / "mine", version)
    monkeypatch.setenv(headers.INCLUDE_VARIABLE, str(wish))
    with pytest.raises(BuildError, match=message) as caught:
        headers.tensorrt_headers(10)
    assert caught.value.where == str(wish)


def test_system_headers_of_another_version_are_passed_over(tmp_path: Path) -> None:
    _headers(tmp_path / "usr", "#define NV_TENSORRT_MAJOR 11\n")
    crate = _headers(
        tmp_path / "cargo/registry/src/index/trtx-sys-0.5.0/TensorRT-Headers/TRT-Enterprise-10.16", "#define TRT_MAJOR_ENTERPRISE 10\n"
    )
    assert headers.tensorrt_headers(10) == crate
    assert headers.tensorrt_headers(11) == tmp_path / "usr"


@pytest.mark.parametrize(
    ("script", "found"), [("exit 1", False), ('mkdir -p "$CARGO_HOME"; cp -r "$CARGO_HOME/../later/." "$CARGO_HOME"', True)]
)
def test_cargo_fetches_the_crate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, found: bool) -> None:
    _headers(
        tmp_path / "later/registry/src/index/trtx-sys-0.5.0/TensorRT-Headers/TRT-Enterprise-10.16", "#define TRT_MAJOR_ENTERPRISE 10\n"
    )
    cargo = tmp_path / "bin/cargo"
    cargo.parent.mkdir()
    cargo.write_text(f"#!/bin/sh\ngrep -q 'trtx-sys = \"=0.5.0\"' Cargo.toml || exit 1\n{script}\n")
    cargo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cargo.parent}:/usr/bin:/bin")
    if found:
        assert headers.tensorrt_headers(10).name == "TRT-Enterprise-10.16"
    else:
        with pytest.raises(MissingExtraError):
            headers.tensorrt_headers(10)


@pytest.mark.parametrize("major", [10, 11, 12])
def test_absence_says_what_to_install(major: int) -> None:
    with pytest.raises(MissingExtraError, match=f"no headers of TensorRT {major}") as caught:
        headers.tensorrt_headers(major)
    assert headers.INCLUDE_VARIABLE in caught.value.hint
    assert "cargo" in caught.value.hint


def test_the_drivers_header_comes_with_triton() -> None:
    assert (headers.cuda_headers() / "cuda.h").is_file()


def test_without_the_drivers_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(headers, "_CUDA", ())
    with pytest.raises(MissingExtraError, match=r"no cuda\.h"):
        headers.cuda_headers()
