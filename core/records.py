"""The record of a stage: what it read and wrote (by SHA-256), with which tools and options.

A stage whose record still matches is not run again; a stage that reads an artifact first checks it
against the record of the stage that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .artifacts import atomic_folder, files_in, read_json, restore_interrupted_swap, sha256, write_json
from .errors import ArtifactError

RECORD_NAME = "record.json"


class Record(BaseModel):
    """What one stage did.

    `read` and `wrote` map a name to a SHA-256; `options` is what the user chose; `tools` maps a
    distribution to its version; `facts` is what the stage found out. `ran` is not stored: whether this
    call did the work (False: the artifacts were up to date, or the record was read).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    read: dict[str, str]
    options: dict[str, Any]
    tools: dict[str, str]
    wrote: dict[str, str]
    facts: dict[str, Any] = {}
    ran: bool = Field(False, exclude=True)


def run_stage(
    stage: str,
    folder: Path,
    *,
    read: Mapping[str, Path],
    options: Mapping[str, Any],
    tools: tuple[str, ...],
    body: Callable[[Path], dict[str, Any]],
) -> Record:
    """Run a stage into `folder`, or leave it alone when nothing it depends on has changed.

    Args:
        stage: Name of the stage.
        folder: Where its artifacts go; replaced as a whole.
        read: Name to path of every artifact it reads.
        options: JSON-able options that change the result.
        tools: Distributions whose versions change the result.
        body: Writes the artifacts into the folder it is given, and returns facts for the record.

    Returns:
        The record; its `ran` says whether the stage did anything.
    """
    inputs = {name: sha256(path) for name, path in sorted(read.items())}
    versions = {name: tool_version(name) for name in sorted(("onerec-trt", *tools))}
    existing = _matching_record(folder, stage, inputs, dict(options), versions)
    if existing is not None:
        return existing
    with atomic_folder(folder) as temporary:
        facts = body(temporary)
        wrote = {str(p.relative_to(temporary)): sha256(p) for p in files_in(temporary)}
        record = Record(stage=stage, read=inputs, options=dict(options), tools=versions, wrote=wrote, facts=facts, ran=True)
        write_json(temporary / RECORD_NAME, record.model_dump(mode="json"))
    return record


def read_record(folder: Path) -> Record:
    """Read a stage's record and check the hash of every file it names.

    Raises:
        ArtifactError: The record is missing or malformed, or a file was changed, added or removed since.
    """
    restore_interrupted_swap(folder)
    path = folder / RECORD_NAME
    try:
        record = Record.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"the record is malformed: {error.errors()[0]['msg']}", where=str(path), hint="run its stage again") from None
    present = {str(p.relative_to(folder)): p for p in files_in(folder) if p != path}
    for name in sorted(present.keys() ^ record.wrote.keys()):
        problem = "missing" if name in record.wrote else "not in the record"
        raise ArtifactError(f"file {problem}", where=str(folder / name), hint=f"run the stage '{record.stage}' again")
    for name, expected in record.wrote.items():
        if sha256(present[name]) != expected:
            hint = f"run the stage '{record.stage}' again"
            raise ArtifactError("the file does not match its record", where=str(folder / name), hint=hint)
    return record


def tool_version(distribution: str) -> str:
    """Installed version of a distribution, or 'absent'."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def _matching_record(folder: Path, stage: str, read: dict[str, str], options: dict[str, Any], tools: dict[str, str]) -> Record | None:
    restore_interrupted_swap(folder)
    if not (folder / RECORD_NAME).exists():
        return None
    try:
        record = read_record(folder)
    except ArtifactError:
        return None
    same = (record.stage, record.read, record.options, record.tools) == (stage, read, options, tools)
    return record if same else None
