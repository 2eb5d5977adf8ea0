"""Stages run when something they depend on has changed, and only then; tampering is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core import records
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.records import RECORD_NAME, Record, read_record, run_stage, tool_version


class Stage:
    """A stage that copies its input in capitals and counts how often it ran."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output, self.runs = folder / "input", folder / "output", 0
        self.input.write_text("hello")

    def run(self, **changes: Any) -> Record:
        arguments: dict[str, Any] = {"read": {"input": self.input}, "options": {"beam": [4, 8]}, "tools": ("numpy",)} | changes
        return run_stage(arguments.pop("stage", "shout"), self.output, body=self.body, **arguments)

    def body(self, folder: Path) -> dict[str, Any]:
        self.runs += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "loud").write_text(self.input.read_text().upper())
        return {"letters": len(self.input.read_text())}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def as_stored(record: Record) -> Record:
    return record.model_copy(update={"ran": False})


def test_a_stage_records_what_it_read_and_wrote(stage: Stage) -> None:
    record = stage.run()
    assert record.ran
    assert (record.stage, record.options, record.facts) == ("shout", {"beam": [4, 8]}, {"letters": 5})
    assert set(record.read) == {"input"}
    assert set(record.wrote) == {"sub/loud"}
    assert set(record.tools) == {"numpy", "onerec-trt"}
    assert read_record(stage.output) == as_stored(record)
    assert RECORD_NAME not in record.wrote


def test_an_unchanged_stage_is_not_run_again(stage: Stage) -> None:
    first, second = stage.run(), stage.run()
    assert not second.ran
    assert second == as_stored(first)
    assert stage.runs == 1


def test_equal_options_in_other_containers_are_unchanged(stage: Stage) -> None:
    stage.run(options={"beam": [4, 8], "name": "x"})
    assert not stage.run(options={"name": "x", "beam": [4, 8]}).ran


@pytest.mark.parametrize("changes", [{"options": {"beam": [4, 9]}}, {"stage": "whisper"}, {"tools": ("numpy", "torch")}])
def test_a_changed_option_stage_or_tool_runs_it_again(stage: Stage, changes: dict[str, Any]) -> None:
    stage.run()
    assert stage.run(**changes).ran


def test_a_changed_input_runs_it_again(stage: Stage) -> None:
    stage.run()
    stage.input.write_text("bye")
    record = stage.run()
    assert record.ran
    assert record.facts == {"letters": 3}
    assert (stage.output / "sub" / "loud").read_text() == "BYE"


def test_a_new_tool_version_runs_it_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run()
    monkeypatch.setattr(records, "version", lambda name: "999")
    assert stage.run().ran


@pytest.mark.parametrize("damage", ["change", "remove", "add", "record"])
def test_a_damaged_artifact_is_made_again(stage: Stage, damage: str) -> None:
    stage.run()
    tamper(stage.output, damage)
    assert stage.run().ran
    assert read_record(stage.output).wrote.keys() == {"sub/loud"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [("change", "does not match"), ("remove", "file missing"), ("add", "not in the record"), ("record", "malformed")],
)
def test_reading_a_damaged_artifact_says_what_is_wrong(stage: Stage, damage: str, message: str) -> None:
    stage.run()
    tamper(stage.output, damage)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_record(stage.output)
    assert "again" in caught.value.hint
    assert str(stage.output) in caught.value.where


def tamper(folder: Path, damage: str) -> None:
    loud, record = folder / "sub" / "loud", folder / RECORD_NAME
    if damage == "change":
        loud.write_text("HELLo")
    elif damage == "remove":
        loud.unlink()
    elif damage == "add":
        (folder / "extra").write_text("x")
    else:
        values = json.loads(record.read_text())
        del values["wrote"]
        record.write_text(json.dumps(values))


def test_a_failed_stage_leaves_the_earlier_artifacts(stage: Stage) -> None:
    record = stage.run()
    stage.input.write_text("other")

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("shout", stage.output, read={"input": stage.input}, options={}, tools=(), body=fail)
    assert read_record(stage.output) == as_stored(record)
    assert {p.name for p in stage.output.parent.iterdir()} == {"input", "output"}


def test_a_missing_input_is_named(stage: Stage) -> None:
    stage.input.unlink()
    with pytest.raises(ArtifactError, match="not found") as caught:
        stage.run()
    assert caught.value.where == str(stage.input)
    assert not stage.output.exists()


def test_a_record_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not found"):
        read_record(tmp_path / "absent")


def test_tool_versions() -> None:
    assert tool_version("numpy")[0].isdigit()
    assert tool_version("no-such-distribution") == "absent"
