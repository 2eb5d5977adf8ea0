"""A stage replaces what is absent, empty or its own; everything else is refused and stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.ownership import require_kept, require_replaceable, stage_of
from onerec_trt.core.records import RECORD_NAME


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def record(folder: Path, stage: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD_NAME).write_text(json.dumps({"stage": stage, "read": {}}))


def stopped_writer(folder: Path) -> None:
    (folder / ".partial-weights-1.0@host").mkdir(parents=True)


OWN: dict[str, Callable[[Path], object]] = {
    "absent": lambda folder: None,
    "empty": lambda folder: folder.mkdir(),
    "leftovers of a stopped writer": stopped_writer,
    "an earlier result": lambda folder: record(folder, "export"),
}


@pytest.mark.parametrize("case", OWN)
def test_what_is_its_own_may_be_replaced(tmp_path: Path, case: str) -> None:
    OWN[case](tmp_path / "exported")
    require_replaceable("export", tmp_path / "exported")


def users_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def users_record(folder: Path) -> None:
    folder.mkdir()
    (folder / RECORD_NAME).write_text('{"stage": "export"}')


def link_to_users_folder(folder: Path) -> None:
    users_folder(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a user's folder": (users_folder, "holds other files"),
    "a user's file of that name": (lambda folder: folder.write_text("mine"), "a file that is not its own"),
    "a user's record of another kind": (users_record, "holds other files"),
    "a record that is no JSON": (lambda folder: (users_folder(folder), (folder / RECORD_NAME).write_text("{")), "holds other files"),
    "a hidden file": (lambda folder: (folder.mkdir(), (folder / ".git").mkdir()), "holds other files"),
    "another stage": (lambda folder: record(folder, "data"), "the result of the stage 'data'"),
    "a link to a user's folder": (link_to_users_folder, "holds other files"),
    "a link that leads nowhere": (lambda folder: folder.symlink_to("nowhere"), "leads nowhere"),
    "a place inside another result": (lambda folder: record(folder.parent, "data"), "would lie inside the result of the stage 'data'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_its_own_is_refused_and_stays(tmp_path: Path, case: str) -> None:
    make, message = FOREIGN[case]
    make(tmp_path / "exported")
    before = snapshot(tmp_path)
    with pytest.raises(ArtifactError, match=message) as caught:
        require_replaceable("export", tmp_path / "exported")
    assert caught.value.where == str(tmp_path / "exported")
    assert "choose another output folder" in caught.value.hint
    assert snapshot(tmp_path) == before


def test_an_input_inside_of_the_result_is_refused(tmp_path: Path) -> None:
    require_kept("export", tmp_path / "exported", [tmp_path / "calibrated", tmp_path])
    with pytest.raises(ArtifactError, match="reads what it would replace"):
        require_kept("export", tmp_path / "exported", [tmp_path / "exported" / "requests.parquet"])


def test_a_folder_without_a_record_is_of_no_stage(tmp_path: Path) -> None:
    assert stage_of(tmp_path) is None
    record(tmp_path, "export")
    assert stage_of(tmp_path) == "export"
