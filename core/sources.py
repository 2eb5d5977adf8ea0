"""A fingerprint of the product's own source: what was made by another version of it is made again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .artifacts import sha256


def sources_hash(*folders: str) -> str:
    """SHA-256 of the files that lie in folders of this package, such as "operators"; of those in folders below them nothing is read."""
    package = Path(__file__).parents[1]
    files = sorted(file for folder in folders for file in (package / folder).glob("*.*"))
    return hashlib.sha256("".join(f"{file.relative_to(package)}\0{sha256(file)}\n" for file in files).encode()).hexdigest()
