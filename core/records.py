"""The record of a stage: what it read and wrote (by SHA-256), with which code, tools and options, and on which machine.

A stage that reads an artifact first checks it against the record of the stage that wrote it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .artifacts import files_in, read_model, restore_interrupted_swap, sha256_of
from .errors import ArtifactError

RECORD_NAME = "record.json"
# Of files that later steps lay beside the plans or graphs of a stage, whose record does not know them.
VERDICT_ENDING, SIGNATURE_ENDING = ".verdict.json", ".signature.json"


class Record(BaseModel):
    """What one stage did.

    `read` and `wrote` map a name to a SHA-256; `sources` is the fingerprint of the package's own code; `options` is what the user
    chose; `tools` maps a distribution to its version; `machine` is set where the result is tied to one; `facts` is what the stage
    found out. `ran` is not stored: whether this call did the work (False: the artifacts were up to date, or the record was read).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    read: dict[str, str]
    sources: str
    options: dict[str, Any]
    tools: dict[str, str]
    machine: dict[str, Any] | None = None
    wrote: dict[str, str]
    facts: dict[str, Any] = {}
    ran: bool = Field(False, exclude=True)


def read_record(folder: Path) -> Record:
    """Read a stage's record and check the hash of every file it names. Verdicts on plans and signatures may lie there too.

    Raises:
        ArtifactError: The record is missing, malformed or of an earlier version, or a file was changed, added, removed or
            replaced by a link since.
    """
    restore_interrupted_swap(folder)
    path = folder / RECORD_NAME
    record = read_model(path, Record, what="the record is malformed or of an earlier version", hint="run its stage again")
    present = {
        str(p.relative_to(folder)): p for p in files_in(folder) if p != path and not p.name.endswith((VERDICT_ENDING, SIGNATURE_ENDING))
    }
    for name in sorted(present.keys() ^ record.wrote.keys()):
        problem = "missing" if name in record.wrote else "not in the record"
        raise ArtifactError(f"file {problem}", where=str(folder / name), hint=f"run the stage '{record.stage}' again")
    for name in record.wrote:
        if present[name].is_symlink():
            hint = "put the file itself there; a link to the whole folder is fine"
            raise ArtifactError("the file is a link, which ONNX Runtime refuses to follow", where=str(folder / name), hint=hint)
    found = sha256_of(present)
    for name, expected in record.wrote.items():
        if found[name] != expected:
            hint = f"run the stage '{record.stage}' again"
            raise ArtifactError("the file does not match its record", where=str(folder / name), hint=hint)
    return record


def tool_version(distribution: str) -> str:
    """Installed version of a distribution, or 'absent'."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
