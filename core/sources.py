"""A fingerprint of the package's own source: what another version of it made is made again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .artifacts import sha256

PACKAGE = Path(__file__).parents[1]
_NO_SOURCE = frozenset({"", ".md", ".pyc", ".typed"})  # README, notes, compiled files; whatever else lies in a folder counts


@dataclass(frozen=True)
class Sources:
    """The source files that decide the result of a stage: Python, C++, tables and templates.

    Args:
        parts: Folders and files of this package, such as "models" or "operators/fp8.py". A folder counts with all folders below it.
        without: Folders and files that do not decide the result, although a part holds or imports them.
    """

    parts: tuple[str, ...]
    without: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """The files that count, sorted, relative to the package."""
        excluded = {PACKAGE / name for name in self.without}
        found = {file for part in self.parts for file in _sources(PACKAGE / part)}
        return sorted(file.relative_to(PACKAGE) for file in found if not excluded & {file, *file.parents})

    def sha256(self) -> str:
        """SHA-256 of the files' names and content, as hexadecimal digits."""
        return hashlib.sha256("".join(f"{file}\0{sha256(PACKAGE / file)}\n" for file in self.files()).encode()).hexdigest()


def _sources(part: Path) -> Iterator[Path]:
    assert part.exists(), f"{part} is no part of the package"
    for file in [part] if part.is_file() else part.rglob("*"):
        names = file.relative_to(PACKAGE).parts
        hidden = any(name == "__pycache__" or name.startswith(".") or name.endswith("~") for name in names)
        if file.is_file() and not hidden and file.suffix not in _NO_SOURCE:
            yield file
