"""The plugin host as a shared library: its C++ sources compiled once for each TensorRT, compiler and release, and kept.

Needs a C++17 compiler; links nothing of TensorRT or CUDA. `headers.py` finds what it includes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..core.artifacts import atomic_file, sha256
from ..core.dependencies import cache_root
from ..core.errors import BuildError, MissingExtraError
from .headers import CUDA_HEADER, TENSORRT_HEADER, cuda_headers, tensorrt_headers

SOURCES = Path(__file__).parent / "plugin_host"
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-static-libstdc++",  # TensorRT, PyTorch and the host may each want another C++ library
    "-static-libgcc",
    "-Wl,-z,defs",
)
_SHOWN = 5


@dataclass(frozen=True)
class HostLibrary:
    """A compiled host and its SHA-256."""

    path: Path
    sha256: str


def host_library(tensorrt_version: str, cache: Path | None = None) -> HostLibrary:
    """The host for a TensorRT, compiled if it is not in the cache yet.

    Args:
        tensorrt_version: Such as '10.6.0'. Libraries of one major version share their plugin interface.
        cache: Folder to keep it in. Default: `onerec-trt` in the user's cache folder.

    Raises:
        MissingExtraError: There is no C++ compiler, or there are no headers; says what to install.
        BuildError: The compiler refuses the sources, or $CXX is no command.
        ArtifactError: The cache cannot be written.
    """
    includes = (tensorrt_headers(int(tensorrt_version.partition(".")[0])), cuda_headers())
    compiler = find_compiler()
    path = (cache or cache_folder()) / f"plugin-host-{_fingerprint(compiler, includes)}.so"
    if not path.is_file():
        with atomic_file(path) as temporary:
            _compile(compiler, includes, temporary)
    return HostLibrary(path, sha256(path))


def cache_folder() -> Path:
    """Where compiled things are kept between runs."""
    return cache_root()


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler: that of $CXX, or c++, g++ or clang++.

    Raises:
        BuildError: $CXX is no command.
        MissingExtraError: There is none.
    """
    try:
        wish = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX is no command: {error}", where=os.environ["CXX"], hint="close its quotes") from None
    for command in [wish] if wish else [["c++"], ["g++"], ["clang++"]]:
        if found := shutil.which(command[0]):
            return (found, *command[1:])
    raise MissingExtraError(
        f"there is no C++ compiler{f' {wish[0]}' if wish else ''}",
        where="the plugin host is compiled on this machine",
        hint="install g++ (package g++ or gcc-c++), or name a C++17 compiler in the environment variable CXX",
    )


def _compile(compiler: tuple[str, ...], includes: tuple[Path, ...], output: Path) -> None:
    folders = [argument for include in includes for argument in ("-isystem", str(include))]
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    exports = f"-Wl,--version-script={SOURCES / 'exports.map'}"
    done = subprocess.run(
        [*compiler, *FLAGS, exports, *folders, *sources, "-o", str(output), "-ldl"], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(
            "\n".join(("the compiler refuses the plugin host", *errors[:_SHOWN])),
            where=compiler[0],
            hint="it needs C++17; name another compiler in the environment variable CXX",
        )


def _fingerprint(compiler: tuple[str, ...], includes: tuple[Path, ...]) -> str:
    """Changes when the sources, the headers, the flags or the compiler do."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(repr((compiler, FLAGS)).encode() + version)
    files = sorted(file for file in SOURCES.iterdir() if file.is_file())
    for include, pattern in zip(includes, (f"{TENSORRT_HEADER[:3]}*.h", CUDA_HEADER), strict=True):
        files += sorted(include.glob(pattern))
    for file in files:
        digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    return digest.hexdigest()[:16]
