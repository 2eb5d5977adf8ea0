"""What a measurement was made with: versions of tools, machine, and the commit of the product."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..core.records import tool_version


def software(tools: tuple[str, ...], commit: str) -> dict[str, Any]:
    """Versions of distributions, CUDA and Python, cores, and the commit: the one given, or git's."""
    return {
        **{name: tool_version(name) for name in tools},
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit or git_commit(),
    }


def git_commit() -> str:
    """Commit of the source tree this runs from, `+changes` where files differ from it; 'unknown' outside of one."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        commit = subprocess.run(
            (*git, "rev-parse", "HEAD"), capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
        changed = subprocess.run(
            (*git, "status", "--porcelain"), capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit
