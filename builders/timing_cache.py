"""The timing cache: kernel timings that builds share, one file for each TensorRT version, GPU and driver.

A file only ever appears whole, so reading needs no lock; a writer holds one while it merges its timings in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ..core.artifacts import atomic_file
from ..core.errors import ArtifactError, BuildError
from ..runtime.machine import Machine

_LOCK_SECONDS = 60.0  # a merge takes well below a second


def cache_file(folder: Path, machine: Machine) -> Path:
    """The file for a machine: timings hold for one TensorRT version, compute capability, GPU model and driver alone."""
    gpu = re.sub(r"[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    generation = machine.compute_capability.replace(".", "")
    return folder / f"{machine.target}-{machine.library_version}-sm{generation}-{gpu}-driver-{machine.driver}.cache"


def read_cache(path: Path) -> bytes:
    """The timings so far; empty when there are none yet.

    Raises:
        ArtifactError: What lies there cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        hint = "name a folder that may be read and written as build.timing_cache"
        raise ArtifactError(f"the timing cache cannot be read: {error.strerror}", where=str(path), hint=hint) from None


def digest(content: bytes) -> str | None:
    """SHA-256 of a cache; None for one that does not exist yet."""
    return hashlib.sha256(content).hexdigest() if content else None


def write_cache(path: Path, content: bytes, known: bytes, merge: Callable[[bytes, bytes], bytes]) -> bytes:
    """Store a build's timings; what other builds stored since it began is kept.

    Args:
        path: The cache's file.
        content: The timings with which the build ended.
        known: Those with which it began.
        merge: Makes one cache of two.

    Returns:
        What the file holds now.

    Raises:
        BuildError: Another process has held the lock for a minute, or the two caches do not fit together.
        ArtifactError: The folder cannot be written, or the disk is full.
    """
    if content == known:
        return read_cache(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            present = read_cache(path)
            merged = content if present == known else merge(present, content)
            with atomic_file(path) as temporary:
                temporary.write_bytes(merged)
    except Timeout:
        hint = "end the build that holds it; the lock goes with its process"
        raise BuildError("the timing cache is locked by another build", where=f"{path}.lock", hint=hint) from None
    except OSError as error:
        hint = "name a folder that may be written as build.timing_cache"
        raise ArtifactError(f"the timing cache cannot be kept: {error.strerror}", where=str(path), hint=hint) from None
    return merged
