"""Text files of users: read as UTF-8 whatever the locale says, with a typed error for every way in which that can fail."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ArtifactError, OnerecTrtError

_HINT = "give the path of a file that you may read"


def read_text(path: Path, *, name: str = "file", error: type[OnerecTrtError] = ArtifactError, hint: str = _HINT) -> str:
    """The text of a file; a byte order mark is left out.

    Args:
        path: The file.
        name: What messages call it, such as "recipe".
        error: The typed error.
        hint: What to do where the file is missing.

    Raises:
        OnerecTrtError: Of the type `error`: it is missing, cannot be read, or is not UTF-8.
    """
    content = read_bytes(path, name=name, error=error, hint=hint)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        what = f"the {name} is not UTF-8: byte {problem.start} is 0x{content[problem.start]:02x}"
        raise error(what, where=str(path), hint="save it in UTF-8") from None


def read_bytes(path: Path, *, name: str = "file", error: type[OnerecTrtError] = ArtifactError, hint: str = _HINT) -> bytes:
    """The content of a file; arguments as of `read_text`.

    Raises:
        OnerecTrtError: Of the type `error`: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{name} not found", where=str(path), hint=hint) from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        raise error(f"the {name} cannot be read: {reason(problem)}", where=str(path), hint=_HINT) from None


def require_no_folder(path: Path, *, name: str, error: type[OnerecTrtError]) -> None:
    """Refuse a folder in the place of a file, before all that lies in it is hashed.

    Raises:
        OnerecTrtError: Of the type `error`.
    """
    if path.is_dir():
        raise error(f"the {name} is a folder", where=str(path), hint=_HINT)


def reason(problem: OSError | ValueError) -> str:
    """Why a file cannot be opened, in the operating system's words."""
    number = getattr(problem, "errno", None)
    return str(problem) if number is None else os.strerror(number)
