"""The host library is compiled once, needs nothing at run time, and says what is missing when it cannot be compiled."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from onerec_trt.builders import host_library as module
from onerec_trt.builders.headers import tensorrt_headers
from onerec_trt.builders.host_library import find_compiler, host_library
from onerec_trt.core.errors import BuildError, MissingExtraError


@pytest.fixture(scope="module", params=["10.6.0", "11.4.0"])
def version(request: pytest.FixtureRequest) -> str:
    try:
        find_compiler()
        tensorrt_headers(int(request.param.partition(".")[0]))
    except MissingExtraError as error:
        pytest.skip(error.what)
    return str(request.param)


def test_is_compiled_once(monkeypatch: pytest.MonkeyPatch, host_cache: Path, version: str) -> None:
    built = host_library(version, host_cache)
    assert len(built.sha256) == 64
    monkeypatch.setattr(module, "_compile", lambda *_: pytest.fail("compiled again"))
    assert host_library(version, host_cache) == built
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-DOTHER"))
    with pytest.raises(pytest.fail.Exception):
        host_library(version, host_cache)


def test_needs_nothing_and_offers_only_the_door(host_cache: Path, version: str) -> None:
    library = str(host_library(version, host_cache).path)
    needed = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True).stdout
    libraries = {line.split()[1] for line in needed.splitlines() if line.strip().startswith("NEEDED")}
    assert {name.partition(".so")[0] for name in libraries} <= {"libc", "libm", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    door = {"getCreators", "setLoggerFinder", *(["getPluginCreators"] if version.startswith("10.") else [])}
    assert {line.split()[-1] for line in symbols.splitlines()} == door


def test_a_compiler_that_refuses_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-std=c++98", "-Wfatal-errors"))
    with pytest.raises(BuildError, match=r"the compiler refuses the plugin host\n.*error"):
        host_library(version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_compiler_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wish = tmp_path / "my-c++"
    wish.write_text("#!/bin/sh\n")
    wish.chmod(0o755)
    monkeypatch.setenv("CXX", f"{wish} -m64")
    assert find_compiler() == (str(wish), "-m64")


def test_a_compiler_with_an_open_quote_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ '-m64")
    with pytest.raises(BuildError, match="CXX is no command"):
        find_compiler()


@pytest.mark.parametrize("wish", ["no-such-compiler", ""])
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: str) -> None:
    monkeypatch.setenv("CXX", wish)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"no C\+\+ compiler") as caught:
        find_compiler()
    assert "install g++" in caught.value.hint
