"""Files and folders that appear whole or not at all, and the hashes that name them.

A writer works on a hidden temporary sibling and renames it at the end; a killed process leaves
only such a sibling behind, which the next writer of the same artifact removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from socket import gethostname
from typing import Any

from safetensors import SafetensorError

from .errors import ArtifactError

_CHUNK = 1 << 22


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their relative names, as hexadecimal digits."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in files_in(path):
            digest.update(f"{file.relative_to(path)}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise ArtifactError("file not found", where=str(path), hint="correct the path, or run the stage that writes it") from None
    return digest.hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, sorted, without the temporary siblings of unfinished writers."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in found if not any(part.startswith(".partial-") for part in p.relative_to(folder).parts))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` when the block ends without an exception.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    with _translated_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = _begin(path)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            _end(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; let it take the place of `path` when the block ends well.

    An existing folder at `path` stays untouched until then.

    Raises:
        ArtifactError: The disk is full or the parent cannot be written.
    """
    with _translated_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        restore_interrupted_swap(path)
        remove_leftovers(path)
        temporary = _begin(path)
        try:
            temporary.mkdir()
            yield temporary
            with _alone(path):
                _swap(temporary, path)
        finally:
            _end(temporary)


def remove_unfinished() -> None:
    """Remove what this process has begun and not finished.

    For the end of a process that Ctrl-C stopped: the signal may fall between entering a writer and
    its block, where no `finally` of ours is in force yet.
    """
    for temporary in tuple(_unfinished):
        _end(temporary)


def restore_interrupted_swap(path: Path) -> None:
    """Undo a folder swap that was killed between its two renames: the old content comes back."""
    if _old_name(path).exists():
        with _alone(path):
            _restore(path)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys and two spaces, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: The file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError("file not found", where=str(path), hint="run the stage that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"not valid JSON: {error}", where=str(path), hint="delete it and run its stage again") from None


_unfinished: set[Path] = set()
_numbers = count()
# Containers share folders, but neither process numbers nor, as a rule, names.
_HOST = hashlib.sha256(gethostname().encode()).hexdigest()[:8]
_OWNER = re.compile(rf"(\d+)\.\d+@{_HOST}")


def _begin(path: Path) -> Path:
    temporary = path.with_name(f".partial-{path.name}-{os.getpid()}.{next(_numbers)}@{_HOST}")
    _unfinished.add(temporary)
    return temporary


def _end(temporary: Path) -> None:
    _remove(temporary)
    _unfinished.discard(temporary)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else is between the two renames of a swap beside `path`. The lock is on the folder around it, and ends with its process."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: swaps there are as safe as their short window is short
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _swap(new: Path, path: Path) -> None:
    """Let a folder take the place of another, which stays where that fails."""
    _restore(path)
    try:
        if path.exists():
            os.replace(path, _old_name(path))
        os.replace(new, path)
    finally:
        _restore(path)


def _restore(path: Path) -> None:
    """The old content goes if a new one is there, else it comes back."""
    old = _old_name(path)
    if path.exists():
        _remove(old)
    elif old.exists():
        os.replace(old, path)


def _old_name(path: Path) -> Path:
    return path.with_name(f".partial-{path.name}-old")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have begun to write in place of `path`, whose folder exists."""
    prefix = f".partial-{path.name}-"
    for leftover in [p for p in path.parent.iterdir() if p.name.startswith(prefix)]:
        owner = _OWNER.fullmatch(leftover.name.removeprefix(prefix))  # the whole rest: "fp8-row-7..." is not of "fp8"
        if owner is None:
            continue
        pid = int(owner[1])
        if not _alive(pid) or (pid == os.getpid() and leftover not in _unfinished):
            _remove(leftover)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _translated_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _raise_as_artifact_error(error.errno, path, error)
        raise
    except SafetensorError as error:  # it tells a full disk in words only: "... No space left on device (os error 28)"
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            _raise_as_artifact_error(int(number[1]), path, error)
        raise


def _raise_as_artifact_error(number: int | None, path: Path, cause: Exception) -> None:
    """Raise what a user can do something about; return otherwise."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        hint = "free space or choose another output folder; nothing was left half-written"
        raise ArtifactError("the disk is full", where=str(path), hint=hint) from cause
    if number == errno.EFBIG:
        hint = "raise `ulimit -f`, or choose an output folder on a file system without such a limit; nothing was left half-written"
        raise ArtifactError("a file is too large for the disk or for the process's limit", where=str(path), hint=hint) from cause
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        raise ArtifactError(
            f"cannot write: {os.strerror(number)}", where=str(path), hint="choose an output folder you may write"
        ) from cause
