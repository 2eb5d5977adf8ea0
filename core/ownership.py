"""What a stage or a command may replace: its own result, and nothing that somebody else put in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from .artifacts import PARTIAL
from .errors import ArtifactError
from .records import RECORD_NAME

_HINT = "move it away, or choose another output folder; nothing was changed"


def require_replaceable(stage: str, folder: Path) -> None:
    """Check that a stage takes nothing away when its result takes the place of `folder`.

    Args:
        stage: The stage's name, as in its record.
        folder: Where the result goes. It may be absent, empty, or hold a record of the same stage.

    Raises:
        ArtifactError: Something else lies there or around it.
    """
    if folder.is_symlink() and not folder.exists():
        raise ArtifactError(f"the stage '{stage}' would replace a link that leads nowhere", where=str(folder), hint=_HINT)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"the stage '{stage}' would replace a file that is not its own", where=str(folder), hint=_HINT)
    if folder.is_dir() and not is_empty(folder) and stage_of(folder) != stage:
        owner = stage_of(folder)
        whose = "holds other files" if owner is None else f"holds the result of the stage '{owner}'"
        raise ArtifactError(f"the stage '{stage}' would replace a folder that {whose}", where=str(folder), hint=_HINT)
    for parent in folder.parents:
        if (owner := stage_of(parent)) is not None:
            what = f"the result of the stage '{stage}' would lie inside the result of the stage '{owner}'"
            raise ArtifactError(what, where=str(folder), hint="choose another output folder or another name; nothing was changed")


def require_own_file(path: Path, is_ours: Callable[[], bool], wanted: str) -> None:
    """Check that a command takes nothing away when it writes a file.

    Args:
        path: Where the file goes. What lies there may be absent, empty, or a file of the command's own kind.
        is_ours: Whether the content is of that kind. What it cannot read (`OSError`, `ValueError`, `RecursionError`) is not.
        wanted: That kind, for the error.

    Raises:
        ArtifactError: Something else lies there.
    """
    if not path.is_symlink() and not path.exists():
        return
    hint = "move it away, or choose another output path; nothing was changed"
    if path.is_dir():
        raise ArtifactError("the command would replace a folder by a file", where=str(path), hint=hint)
    try:
        ours = path.is_file() and (path.stat().st_size == 0 or is_ours())
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise ArtifactError(f"the command would replace a file that is not {wanted}", where=str(path), hint=hint)


def require_kept(stage: str, folder: Path, inputs: Iterable[Path]) -> None:
    """Check that no input of a stage lies in the folder that it replaces.

    Raises:
        ArtifactError: One does.
    """
    for path in inputs:
        if folder in (path, *path.parents):
            raise ArtifactError(f"the stage '{stage}' reads what it would replace", where=str(path), hint=_HINT)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but leftovers of writers that were stopped."""
    return all(path.name.startswith(PARTIAL) for path in folder.iterdir())


def stage_of(folder: Path) -> str | None:
    """The stage whose record lies in a folder, intact or not; None where none does."""
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    stage = record.get("stage") if isinstance(record, dict) and "read" in record else None
    return stage if isinstance(stage, str) else None
