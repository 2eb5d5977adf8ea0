"""Which commit a measurement was made at."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str:
    """Commit of the source tree this runs from, `+changes` where files differ from it; 'unknown' outside of one."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        commit = subprocess.run((*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run((*git, "status", "--porcelain"), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit
