"""SHA-256 of files and folders: files side by side, and a large file once as long as nobody writes to it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import ArtifactError
from .text_files import reason
from .threads import usable_cores

Files = tuple[Path, ...]  # some files of one folder, sorted: what is read of it

LARGE = 1 << 26  # bytes from which on a hash is worth remembering
_CHUNK = 1 << 22
_THREADS = 8
_SETTLED_NS = 10**9  # a file written later than this before it is read may be written again without its times changing
_OF_DESKTOPS = ("Thumbs.db", "desktop.ini")
_State = tuple[int, int, int, int, int]
_known: dict[_State, str] = {}  # of large files that this process has hashed


def sha256(path: Path | Files) -> str:
    """SHA-256 of a file, or of a folder's files or some of them with their relative names, as hexadecimal digits.

    Raises:
        ArtifactError: A file is missing or cannot be read.
    """
    return sha256_of({"": path})[""]


def sha256_of(paths: Mapping[str, Path | Files]) -> dict[str, str]:
    """The same for several paths at once, by name.

    Raises:
        ArtifactError: A file is missing or cannot be read.
    """
    parts = {name: _parts(path) for name, path in paths.items()}
    files = [file for found in parts.values() for file in (found[1] if isinstance(found, tuple) else [found])]
    hashes = _of_files(files)
    return {name: _of_folder(*found, hashes) if isinstance(found, tuple) else hashes[found] for name, found in parts.items()}


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, sorted, without hidden ones: those of unfinished writers, and what desktops leave behind."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in _OF_DESKTOPS)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _parts(path: Path | Files) -> Path | tuple[Path, Iterable[Path]]:
    """A file, or a folder and its files."""
    if isinstance(path, tuple):
        return path[0].parent, path
    return (path, files_in(path)) if path.is_dir() else path


def _of_folder(folder: Path, files: Iterable[Path], hashes: Mapping[Path, str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0{hashes[file]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _of_files(files: Iterable[Path]) -> dict[Path, str]:
    """Large files are hashed side by side: hashlib leaves the interpreter to other threads meanwhile."""
    distinct = list(dict.fromkeys(files))
    large = [file for file in distinct if file.is_file() and file.stat().st_size >= LARGE]
    if len(large) < 2:
        return {file: _of_file(file) for file in distinct}
    with ThreadPoolExecutor(min(_THREADS, usable_cores(), len(large))) as pool:
        hashes = dict(zip(large, pool.map(_of_file, large), strict=True))
    return hashes | {file: _of_file(file) for file in distinct if file not in hashes}


def _of_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            begun, state = time.time_ns(), _state(os.fstat(stream.fileno()))
            if state in _known:
                return _known[state]
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise ArtifactError("file not found", where=str(path), hint="correct the path, or run the stage that writes it") from None
    except OSError as error:
        raise ArtifactError(f"the file cannot be read: {reason(error)}", where=str(path), hint="give a file that you may read") from None
    *_, size, written, changed = state
    if size >= LARGE and begun - max(written, changed) > _SETTLED_NS:
        _known[state] = digest.hexdigest()
    return digest.hexdigest()


def _state(found: os.stat_result) -> _State:
    """Changes whenever somebody writes to the file, or puts another one in its place."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
