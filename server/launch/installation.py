"""Finds Triton Inference Server on this machine: a program on PATH, at a given path, or in an unpacked wheel of nvidia-pytriton."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import ArtifactError

PROGRAM = "tritonserver"
_IN_WHEEL = Path("pytriton", "tritonserver")
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A server that can be started.

    Args:
        program: Its path.
        backends: Folder with its backends. None: the server's own.
        library_paths: Folders its libraries lie in, beside those the system knows.
    """

    program: Path
    backends: Path | None = None
    library_paths: tuple[Path, ...] = field(default=())

    def environment(self) -> dict[str, str]:
        """This process's environment, changed so that the server finds its libraries, and its Python backend this very Python."""
        paths = [*map(str, self.library_paths), os.environ.get("LD_LIBRARY_PATH", "")]
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
            "PATH": os.pathsep.join(filter(None, programs)),  # the Python backend starts the first python3 on it
        }


def find_server(given: Path | None, working: Path) -> Installation:
    """The server to start.

    Args:
        given: A `tritonserver` program, or the folder that a wheel of nvidia-pytriton was unpacked into. None: the one on PATH.
        working: A folder in which backends of a wheel are put together.

    Raises:
        ArtifactError: There is no server, or the wheel has no Python backend for this Python.
    """
    if given is None:
        found = shutil.which(PROGRAM)
        if found is None:
            hint = "start this inside a container of the server, or name a program or an unpacked wheel of nvidia-pytriton with --server"
            raise ArtifactError("Triton Inference Server is not installed", where="PATH", hint=hint)
        return Installation(Path(found))
    if (given / _IN_WHEEL).is_dir():
        return _of_wheel(given, working)
    if given.is_file() and os.access(given, os.X_OK):
        return Installation(given)
    hint = "give the program tritonserver, or the folder that a wheel of nvidia-pytriton was unpacked into"
    raise ArtifactError("this is no Triton Inference Server", where=str(given), hint=hint)


def _of_wheel(unpacked: Path, working: Path) -> Installation:
    """Links in `working` put the Python backend beside its stub for this Python, as the server wants it."""
    root = unpacked / _IN_WHEEL
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        hint = "use a Python that the wheel has a stub for"
        raise ArtifactError(f"the wheel has no Python backend for Python {version}", where=str(stub), hint=hint)
    backend = working / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for file in (*(path for path in (root / "backends" / "python").iterdir() if path.is_file()), stub):
        (backend / file.name).symlink_to(file.resolve())
    libraries = (Path(sysconfig.get_config_var("LIBDIR")), (unpacked / "nvidia_pytriton.libs").resolve())
    return Installation(root / "bin" / PROGRAM, backend.parent, libraries)
