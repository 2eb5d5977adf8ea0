"""Files and folders that appear whole or not at all.

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
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from .errors import ArtifactError, first_problem
from .hashing import Files as Files
from .hashing import files_in as files_in
from .hashing import sha256 as sha256
from .hashing import sha256_of as sha256_of
from .paths import absolute
from .text_files import read_bytes

Model = TypeVar("Model", bound=BaseModel)
PARTIAL = ".partial-"  # begins the names of temporary siblings


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` when the block ends without an exception.

    Raises:
        ArtifactError: The disk is full, the folder cannot be written, or something else than a file lies there.
    """
    path = absolute(path)
    with _translated_os_errors(path):
        _make_parents(path)
        if path.exists() and not path.is_file():  # renaming would put a file in the place of a device such as /dev/null
            what = "a folder, device or pipe lies where a file is to be written"
            raise ArtifactError(what, where=str(path), hint="give the path of a file")
        remove_leftovers(path)
        temporary = _begin(path)
        try:
            yield temporary
            _follow_umask(temporary)
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
    path = absolute(path)
    with _translated_os_errors(path):
        _make_parents(path)
        restore_interrupted_swap(path)
        remove_leftovers(path)
        temporary = _begin(path)
        try:
            temporary.mkdir()
            yield temporary
            for written in (temporary, *temporary.rglob("*")):
                _follow_umask(written)
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
    path = absolute(path)
    if path.name and _old_name(path).exists():
        with _alone(path):
            _restore(path)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may hold bytes that are not UTF-8


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys and two spaces, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: The file is missing, cannot be read, is no JSON, or names a key twice.
    """
    content = read_bytes(path, hint="run the stage that writes it")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_mapping)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:  # not UTF-8, malformed, a repeated key, or a number of thousands of digits
        problem = str(error)
    raise ArtifactError(f"not valid JSON: {problem}", where=str(path), hint="delete it and run its stage again")


def read_model(path: Path, kind: type[Model], *, what: str = "malformed", hint: str) -> Model:
    """Read JSON as a model.

    Args:
        path: The file.
        kind: The model.
        what: How the error begins that says where the file is wrong.
        hint: What to do then.

    Raises:
        ArtifactError: The file is missing, cannot be read, is no JSON, or is no such model.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"{what}: {first_problem(error)}", where=str(path), hint=hint) from None


def json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where it holds no such thing. For looking through files that may be anybody's."""
    try:
        values = read_json(path)
    except ArtifactError:
        return None
    return values if isinstance(values, dict) else None


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return values


_STATUS = Path("/proc/self/status")
_unfinished: set[Path] = set()
_numbers = count()
# Containers share folders, but neither process numbers nor, as a rule, names.
_HOST = hashlib.sha256(gethostname().encode()).hexdigest()[:8]
_OWNER = re.compile(rf"(\d+)\.\d+@{_HOST}")


def _begin(path: Path) -> Path:
    temporary = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}.{next(_numbers)}@{_HOST}")
    _unfinished.add(temporary)
    return temporary


def _end(temporary: Path) -> None:
    _remove(temporary)
    _unfinished.discard(temporary)


def _follow_umask(path: Path) -> None:
    """Give a new file or folder the mode that the umask says: safetensors makes its files readable by their owner alone."""
    if path.is_symlink() or not path.exists():
        return
    mode = path.stat().st_mode & 0o777
    executable = 0o777 if path.is_dir() or mode & 0o100 else 0o666
    wanted = executable & ~_umask()
    if mode != wanted:
        path.chmod(wanted)


def _umask() -> int:
    """The umask of this process. Asked for where that changes nothing: other threads write files meanwhile."""
    try:
        line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("Umask:"))
        return int(line.split()[1], 8)
    except (OSError, StopIteration):
        os.umask(mask := os.umask(0o077))
        return mask


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
    return path.with_name(f"{PARTIAL}{path.name}-old")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have begun to write in place of `path`, whose folder exists."""
    prefix = f"{PARTIAL}{path.name}-"
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
    if path.is_dir() and not path.is_symlink():  # of a link only the link is ours
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_NO_PLACE = {
    errno.EEXIST: "a file lies where a folder is needed: choose another output path",
    errno.ENOTDIR: "a file lies where a folder is needed: choose another output path",
    errno.ENOENT: "folders cannot be made there: choose another output path",
    errno.ENAMETOOLONG: "choose a shorter output path",
    errno.ELOOP: "a link on the way leads to itself: choose another output path",
}


def _make_parents(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise ArtifactError(f"cannot write: {os.strerror(error.errno)}", where=str(path), hint=_NO_PLACE[error.errno]) from None


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
