"""Which processes run, and which of them is the server that a test started."""

from __future__ import annotations

import os
from pathlib import Path

from onerec_trt.server.launch import processes


def server_of_this_process() -> int:
    """Process number of the server: the one child of this process that has instances."""
    mine = os.getpid()
    children = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal() and _parent_of(each) == mine]
    (server,) = [child for child in children if processes.stubs(child)]
    return server


def runs(pid: int) -> bool:
    """Whether a process has not ended; whoever inherits it may be slow to take note."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _parent_of(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return None
