"""What the Python backend leaves in /dev/shm: 1 MB and more for each instance whose server was killed, and empty files of locks."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from socket import gethostname

SHARED_MEMORY = Path("/dev/shm")
# Containers share /dev/shm at times, but neither process numbers nor, as a rule, names.
_HOST = hashlib.sha256(gethostname().encode()).hexdigest()[:8]
_PREFIX = f"onerec_trt_{_HOST}_"
_OWN = re.compile(rf"{_PREFIX}(\d+)_")


def region_prefix(pid: int | None = None) -> str:
    """What names of regions begin with that belong to a process, by default this one: the servers that it started."""
    return f"{_PREFIX}{os.getpid() if pid is None else pid}_"


def remove_leftovers(folder: Path = SHARED_MEMORY) -> int:
    """Remove regions of servers whose process is gone, or is this one, before it starts a server and after the server's end.

    Args:
        folder: Where regions lie.

    Returns:
        How many were removed. Those of another user stay: their next server removes them.
    """
    leftovers = [region for region in folder.iterdir() if (found := _OWN.match(region.name)) and not _serves(int(found[1]))]
    return sum(map(_removed, leftovers))


def _removed(region: Path) -> bool:
    """Remove a region; whether this was done, and by this process."""
    try:
        region.unlink()
    except (FileNotFoundError, PermissionError):
        return False
    return True


def _serves(pid: int) -> bool:
    """Whether another process with this number runs."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
