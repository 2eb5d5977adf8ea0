"""A stage: one step of the pipeline as one declaration. Here it is run, or left alone, or compared with what lies in its folder.

The functions that declare stages stand beside the code that does the work, such as `export/stage.py`;
`tools/pipeline.py` declares all stages of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .artifacts import Files, atomic_folder, files_in, remove_leftovers, restore_interrupted_swap, sha256_of, write_json
from .errors import ArtifactError
from .ownership import require_kept, require_replaceable
from .records import RECORD_NAME, Record, read_record, tool_version
from .sources import Sources


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that decides the result of a step, and what makes it.

    A stage is declared before those it reads from have run. What asks the disk or the machine is therefore a function.

    Args:
        name: As in its record and in messages.
        folder: Where its artifacts go; replaced as a whole where it is the stage's own, else refused.
        sources: The package's own code that decides the result.
        tools: Distributions whose versions change the result.
        options: JSON-able values that change the result.
        inputs: Gives name and path of every artifact it reads, or the files that it reads of a folder. Default: it reads none.
        body: Writes the artifacts into the folder it is given, and returns facts for the record.
        machine: Gives JSON-able facts of the machine that the result is tied to. Default: it is tied to none.
        check: Raises what speaks against the stage, whether or not its result is up to date. Default: nothing does.
        needs: Stages that only this one reads from; they run before it.
        after: Gets the record in the end, whether or not the stage had anything to do. Default: nothing follows.
    """

    name: str
    folder: Path
    sources: Sources
    tools: tuple[str, ...]
    options: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, Path | Files]] = dict
    body: Callable[[Path], dict[str, Any]]
    machine: Callable[[], dict[str, Any]] | None = None
    check: Callable[[], object] | None = None
    needs: tuple[Stage, ...] = ()
    after: Callable[[Record], object] | None = None


@dataclass(frozen=True)
class Difference:
    """One thing in which two records differ; inputs, options and tools by name."""

    kind: Literal["input", "option", "sources", "tool", "machine"]
    name: str = ""

    def __str__(self) -> str:
        """As in "made from another ..."."""
        words = {"sources": "version of its code", "tool": f"version of {self.name}", "machine": "machine"}
        return words.get(self.kind, self.name.replace("_", " "))


def run_stage(stage: Stage) -> Record:
    """Run a stage and those it needs, or leave them alone where nothing they depend on has changed.

    Returns:
        The record; its `ran` says whether the stage did anything.

    Raises:
        ArtifactError: Something that is not the stage's own lies in the place of its result, or of one that it needs.
        OnerecTrtError: What the stage refuses, or one that it needs.
    """
    require_places(stage)
    if stage.check is not None:
        stage.check()
    machine = None if stage.machine is None else stage.machine()  # before any work: there may be no GPU
    for needed in stage.needs:
        run_stage(needed)
    declared = declare(stage).model_copy(update={"machine": machine})
    existing = _intact_record(stage.folder)
    up_to_date = existing is not None and existing.stage == stage.name and not differences(existing, declared)
    record = existing if existing is not None and up_to_date else _run(stage, declared)
    if stage.after is not None:
        stage.after(record)
    return record


def is_current(stage: Stage) -> bool:
    """Whether `run_stage` would leave a stage alone: its result is there, and nothing that it depends on has changed."""
    existing = _intact_record(stage.folder)
    if existing is None or existing.stage != stage.name:
        return False
    machine = None if stage.machine is None else stage.machine()
    try:
        if stage.check is not None:
            stage.check()
        declared = declare(stage)
    except ArtifactError:  # what it was made from has changed, or is gone
        return False
    return not differences(existing, declared.model_copy(update={"machine": machine}))


def require_places(*stages: Stage) -> None:
    """Check that stages, and those they need, replace nothing but what is their own.

    Raises:
        ArtifactError: One would; nothing was changed.
    """
    for stage in stages:
        require_places(*stage.needs)
        restore_interrupted_swap(stage.folder)
        require_replaceable(stage.name, stage.folder)


def _run(stage: Stage, declared: Record) -> Record:
    with atomic_folder(stage.folder) as temporary:
        facts = stage.body(temporary)
        wrote = sha256_of({str(p.relative_to(temporary)): p for p in files_in(temporary)})
        record = declared.model_copy(update={"wrote": wrote, "facts": facts, "ran": True})
        write_json(temporary / RECORD_NAME, record.model_dump(mode="json"))
    return record


def declare(stage: Stage) -> Record:
    """The record that a stage would begin with now: nothing is run, nothing written, and no machine asked.

    Raises:
        ArtifactError: An input is missing, does not match its record, or lies where the result goes.
    """
    inputs = stage.inputs()
    require_kept(stage.name, stage.folder, (file for path in inputs.values() for file in (path if isinstance(path, tuple) else (path,))))
    return Record(
        stage=stage.name,
        read=sha256_of(dict(sorted(inputs.items()))),
        sources=stage.sources.sha256(),
        options=dict(stage.options),
        tools={name: tool_version(name) for name in sorted(("onerec-trt", *stage.tools))},
        wrote={},
    )


def differences(record: Record, declared: Record) -> list[Difference]:
    """Everything that a stage depends on and in which two of its records differ."""
    return [
        *(Difference("input", name) for name in _unequal(declared.read, record.read)),
        *(Difference("option", name) for name in _unequal(declared.options, record.options)),
        *([Difference("sources")] if record.sources != declared.sources else []),
        *(Difference("tool", name) for name in _unequal(declared.tools, record.tools)),
        *([Difference("machine")] if record.machine != declared.machine else []),
    ]


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names whose values differ or that only one of the two has."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def _intact_record(folder: Path) -> Record | None:
    """None where the stage has not run, or its files are not those it wrote."""
    restore_interrupted_swap(folder)
    if not (folder / RECORD_NAME).exists():
        return None
    remove_leftovers(folder)
    try:
        return read_record(folder)
    except ArtifactError:
        return None
