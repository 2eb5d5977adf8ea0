"""What dependencies read from the environment when they are imported: no reports to their makers, and an account they can name.

Child processes inherit all of it. A variable that the user has set stays.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# Each stops reports to the maker of a dependency. ONNX Runtime reads its own when it is loaded: from then on it would collect
# events with names of models, and leave files in HOME, TMPDIR and the working directory (its docs/Privacy.md, pull request 27379).
_NO_REPORTS = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_ACCOUNT_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks before the list of accounts


def set_dependency_defaults() -> None:
    """Prepare this process and those it starts; comes before the first import of a dependency."""
    for name, value in _NO_REPORTS.items():
        os.environ.setdefault(name, value)
    if not any(os.environ.get(name) for name in _ACCOUNT_VARIABLES) and not _has_account():
        os.environ["USER"] = f"uid-{os.getuid()}"  # PyTorch names its cache folder so
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(_temporary_home())


def cache_root() -> Path:
    """Folder for what is kept between runs: XDG_CACHE_HOME, ~/.cache, or a temporary folder where neither can be written."""
    wished = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = wished if _can_write(wished) else _temporary_home() / ".cache"
    return root / "onerec-trt"


def _has_account() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


@cache
def _temporary_home() -> Path:
    """A folder that this account alone can write. Compiled code is kept there and loaded again: nobody else may put theirs in its place.

    Where somebody else has taken its name, each process gets a new one.
    """
    home = Path(tempfile.gettempdir()) / f"onerec-trt-{os.getuid()}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return home if ours else Path(tempfile.mkdtemp(prefix=f"{home.name}-"))


def _can_write(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that is there, takes new files."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
