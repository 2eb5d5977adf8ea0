"""Paths as users write them, made absolute where they enter: `~`, variables, and `..` as the operating system takes it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from .errors import RecipeError

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def located(path: Path | str, base: Path = Path()) -> Path:
    """The absolute path that is meant.

    Args:
        path: May begin with `~` or `~user`, and hold variables such as `$DATA` or `${DATA}`.
        base: What a relative path counts from. Default: the working directory.

    Raises:
        RecipeError: It is empty or holds a zero byte, a variable is not set, or a home folder is not known; or it is relative, and the
            working directory is gone.
    """
    text = str(path)
    if not text or "\0" in text:
        raise RecipeError("a path is empty or holds a zero byte", where=repr(text), hint="give the path of a file or folder")
    return absolute(base / _with_home(_VARIABLE.sub(_value, text), text))


def absolute(path: Path) -> Path:
    """Absolute, without `.` and `..`. The last part may stay a link: it is a name that the user chose.

    `..` behind a link leads to the parent of what the link names, as it does for the operating system.

    Raises:
        RecipeError: It is relative, and the working directory is gone.
    """
    path = path if path.is_absolute() else Path(_working_directory(path), path)
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def written_in_utf_8(path: Path, encoding: str | None = None) -> Path:
    """A path out of a UTF-8 file, whose bytes name the file whatever the locale's encoding (`encoding`) is."""
    content = str(path).encode("utf-8", "surrogateescape")
    return Path(content.decode(encoding or sys.getfilesystemencoding(), "surrogateescape"))


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or below it, whatever links lead there."""
    real, around = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return around in (real, *real.parents)


def _working_directory(wanted: Path) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        hint = "change to a folder that is there, or give an absolute path"
        raise RecipeError("the working directory is gone", where=str(wanted), hint=hint) from None


def _value(found: re.Match[str]) -> str:
    name = found[1].strip("{}")
    if name not in os.environ:
        raise RecipeError(f"the environment variable {name} is not set", where=found.string, hint="set it, or write the path out")
    return os.environ[name]


def _with_home(text: str, written: str) -> str:
    home = os.path.expanduser(text)
    if home.startswith("~"):
        raise RecipeError("the home folder is not known", where=written, hint="set HOME, or write the path out")
    return home
