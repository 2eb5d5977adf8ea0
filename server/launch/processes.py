"""Child processes of the server: the stubs in which the Python backend runs models, one for each instance."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

_STUB = "triton_python_backend_stub"
_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec a lock of the loader may be held by a thread that is no more


def stubs(server: int) -> dict[int, str]:
    """Living stubs of a server by process number: the path of the model file that each runs."""
    found = {}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and _parent(folder) == server:
            arguments = _arguments(folder)
            if len(arguments) > 1 and arguments[0].endswith(_STUB):
                found[int(folder.name)] = arguments[1]
    return found


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it ends; for the moment between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _parent(folder: Path) -> int | None:
    """Number of the parent of a process that has not ended."""
    try:
        state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def _arguments(folder: Path) -> list[str]:
    try:
        return (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
