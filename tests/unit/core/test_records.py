"""A record is checked against the files it names; tampering is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.records import RECORD_NAME, Record, read_record, tool_version

from .damage import tamper


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with one file and its record."""
    folder = tmp_path / "output"
    loud = folder / "sub" / "loud"
    loud.parent.mkdir(parents=True)
    loud.write_text("HELLO")
    record = Record(stage="shout", read={}, sources="0" * 64, options={}, tools={}, wrote={"sub/loud": sha256(loud)}, ran=True)
    write_json(folder / RECORD_NAME, record.model_dump(mode="json"))
    return folder


def test_a_record_that_was_read_did_no_work(written: Path) -> None:
    record = read_record(written)
    assert (record.stage, set(record.wrote), record.ran) == ("shout", {"sub/loud"}, False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("change", "does not match"),
        ("remove", "file missing"),
        ("add", "not in the record"),
        ("record", "malformed or of an earlier version: wrote: Field required"),
        ("earlier version", "malformed or of an earlier version: sources: Field required"),
    ],
)
def test_reading_a_damaged_artifact_says_what_is_wrong(written: Path, damage: str, message: str) -> None:
    tamper(written, damage)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_record(written)
    assert "again" in caught.value.hint
    assert str(written) in caught.value.where


def test_a_file_behind_a_link_is_refused_and_a_folder_behind_one_is_read(written: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(written)
    assert read_record(tmp_path / "elsewhere").wrote
    name = next(iter(read_record(written).wrote))
    (written / name).rename(tmp_path / "blob")
    (written / name).symlink_to(tmp_path / "blob")
    with pytest.raises(ArtifactError, match="the file is a link"):
        read_record(written)


def test_a_record_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not found"):
        read_record(tmp_path / "absent")


def test_tool_versions() -> None:
    assert tool_version("numpy")[0].isdigit()
    assert tool_version("no-such-distribution") == "absent"
