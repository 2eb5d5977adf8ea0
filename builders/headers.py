"""Where the headers lie that the plugin host includes: TensorRT's, and that of the CUDA driver.

The wheels of TensorRT carry no headers. They come with its system packages, and inside the crate `trtx-sys`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import BuildError, MissingExtraError

TENSORRT_HEADER, CUDA_HEADER = "NvInferRuntime.h", "cuda.h"
INCLUDE_VARIABLE = "ONEREC_TRT_TENSORRT_INCLUDE"
CRATE = "trtx-sys"
CRATE_VERSIONS = {10: "0.5.0", 11: "0.9.1"}  # those that carry headers of TensorRT 10.16 and 11.4

_SYSTEM = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
)
_CUDA = ("/usr/local/cuda/include", "/usr/include")
_MAJOR = re.compile(r"^#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", re.M)
_FETCH_SECONDS = 300
_MANIFEST = """[package]
name = "headers"
version = "0.0.0"
edition = "2021"
[lib]
path = "lib.rs"
[dependencies]
{crate} = "={version}"
"""


def tensorrt_headers(major: int) -> Path:
    """Folder of TensorRT's headers of a major version: that of the environment variable, the system's, or the crate's.

    Raises:
        BuildError: The environment variable names a folder without them, or with those of another version.
        MissingExtraError: They are nowhere; says how to get them.
    """
    if wish := os.environ.get(INCLUDE_VARIABLE):
        found = header_version(Path(wish))
        if found != major:
            what = "has no TensorRT headers" if found is None else f"has headers of TensorRT {found}, the installed library is {major}"
            hint = f"correct it, or unset it; it names the folder with {TENSORRT_HEADER}"
            raise BuildError(f"{INCLUDE_VARIABLE} {what}", where=wish, hint=hint)
        return Path(wish)
    for folder in map(Path, _SYSTEM):
        if header_version(folder) == major:
            return folder
    if major in CRATE_VERSIONS and (carried := _from_crate(major)):
        return carried
    raise MissingExtraError(
        f"there are no headers of TensorRT {major}",
        where="the plugin host is compiled on this machine",
        hint=f"install TensorRT's development package (libnvinfer-headers-dev), or set {INCLUDE_VARIABLE} to the folder with "
        f"{TENSORRT_HEADER}, or install cargo, which fetches them in the crate {CRATE}",
    )


def header_version(folder: Path) -> int | None:
    """Major version of the TensorRT headers in a folder; None: there are none."""
    file = folder / "NvInferVersion.h"
    if not file.is_file() or not (folder / TENSORRT_HEADER).is_file():
        return None
    found = _MAJOR.search(file.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


def cuda_headers() -> Path:
    """Folder with the CUDA driver's header: Triton's wheel carries it.

    Raises:
        MissingExtraError: It is nowhere.
    """
    triton = importlib.util.find_spec("triton")
    packages = (triton.submodule_search_locations if triton else None) or []
    carried = [str(Path(folder) / "backends/nvidia/include") for folder in packages]
    for folder in map(Path, (*carried, *_CUDA)):
        if (folder / CUDA_HEADER).is_file():
            return folder
    raise MissingExtraError(
        f"there is no {CUDA_HEADER}", where="triton/backends/nvidia/include", hint="install PyTorch's triton, or the CUDA toolkit"
    )


def _from_crate(major: int) -> Path | None:
    return next(_unpacked(major), None) or (next(_unpacked(major), None) if _fetch(major) else None)


def _unpacked(major: int) -> Iterator[Path]:
    """Headers in the sources that cargo has already fetched."""
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    for crate in sorted(home.glob(f"registry/src/*/{CRATE}-{CRATE_VERSIONS[major]}*")):
        yield from (folder for folder in sorted(crate.glob("TensorRT-Headers/TRT-Enterprise-*")) if header_version(folder) == major)


def _fetch(major: int) -> bool:
    """Have cargo fetch the crate, without building it."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Cargo.toml").write_text(_MANIFEST.format(crate=CRATE, version=CRATE_VERSIONS[major]), encoding="utf-8")
        Path(folder, "lib.rs").touch()
        try:
            return subprocess.run([cargo, "fetch", "--quiet"], cwd=folder, capture_output=True, timeout=_FETCH_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            return False
