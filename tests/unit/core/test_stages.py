"""Stages run when something they depend on has changed, and only then; what has changed is named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core import records, sources
from onerec_trt.core.artifacts import _HOST
from onerec_trt.core.errors import ArtifactError, GpuError
from onerec_trt.core.records import RECORD_NAME, Record, read_record
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Difference, Stage, declare, differences, is_current, run_stage

from .damage import DAMAGES, tamper


class Shout:
    """A stage that copies its input in capitals and counts how often it ran."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output, self.runs = folder / "input", folder / "output", 0
        self.input.write_text("hello")
        self.stage = Stage(
            name="shout",
            folder=self.output,
            sources=Sources(("core",), without=("core/errors.py",)),
            tools=("numpy",),
            options={"beam": [4, 8], "name": "x"},
            inputs=lambda: {"input": self.input},
            body=self.body,
        )

    def run(self, **changes: Any) -> Record:
        return run_stage(replace(self.stage, **changes))

    def body(self, folder: Path) -> dict[str, Any]:
        self.runs += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "loud").write_text(self.input.read_text().upper())
        return {"letters": len(self.input.read_text())}


@pytest.fixture
def shout(tmp_path: Path) -> Shout:
    return Shout(tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three files: the stage's own, the one it excludes, and one elsewhere."""
    folder = tmp_path / "package"
    for name in ("core/deep/precision.py", "core/errors.py", "tools/cli.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("as it was")
    monkeypatch.setattr(sources, "PACKAGE", folder)
    return folder


def as_stored(record: Record) -> Record:
    return record.model_copy(update={"ran": False})


def test_a_stage_records_what_it_read_and_wrote(shout: Shout) -> None:
    record = shout.run(machine=lambda: {"gpu": "H200"})
    assert record.ran
    assert (record.stage, record.options, record.facts) == ("shout", {"beam": [4, 8], "name": "x"}, {"letters": 5})
    assert (record.sources, record.machine) == (shout.stage.sources.sha256(), {"gpu": "H200"})
    assert set(record.read) == {"input"}
    assert set(record.wrote) == {"sub/loud"}
    assert set(record.tools) == {"numpy", "onerec-trt"}
    assert read_record(shout.output) == as_stored(record)
    assert RECORD_NAME not in record.wrote


def test_an_unchanged_stage_is_not_run_again(shout: Shout) -> None:
    first, second = shout.run(), shout.run()
    assert not second.ran
    assert second == as_stored(first)
    assert shout.runs == 1


def test_a_stage_is_current_where_a_run_would_leave_it_alone(shout: Shout) -> None:
    """Nothing there, all as it was, and one change each of option, machine, lineage and input; nothing is run for it."""
    at_home = replace(shout.stage, machine=lambda: {"gpu": "H200"})
    assert not is_current(at_home)
    run_stage(at_home)
    assert is_current(at_home)
    assert not is_current(replace(at_home, options={"beam": [4]}))
    assert not is_current(replace(at_home, machine=lambda: {"gpu": "H100"}))
    assert not is_current(replace(at_home, name="whisper"))
    assert not is_current(replace(at_home, check=lambda: read_record(shout.output / "nothing")))
    shout.input.write_text("changed")
    assert not is_current(at_home)
    shout.input.unlink()
    assert not is_current(at_home)
    assert shout.runs == 1


def test_what_a_killed_run_left_goes_although_nothing_is_run_again(shout: Shout) -> None:
    shout.run()
    child = subprocess.Popen(["true"])
    child.wait()
    left = shout.output.with_name(f".partial-{shout.output.name}-{child.pid}.0@{_HOST}")
    left.mkdir()
    assert not shout.run().ran
    assert not left.exists()


def test_options_in_another_order_are_unchanged(shout: Shout) -> None:
    shout.run()
    assert not shout.run(options={"name": "x", "beam": [4, 8]}).ran


CHANGES: dict[str, tuple[dict[str, Any], str | None]] = {
    "another option": ({"options": {"beam": [4, 9], "name": "x"}}, "beam"),
    "an option more": ({"options": {"beam": [4, 8], "name": "x", "max_context": 3}}, "max context"),
    "an option less": ({"options": {"beam": [4, 8]}}, "name"),
    "another tool": ({"tools": ("numpy", "torch")}, "version of torch"),
    "no input": ({"inputs": dict}, "input"),
    "other code": ({"sources": Sources(("models",))}, "version of its code"),
    "a machine": ({"machine": lambda: {"gpu": "H200"}}, None),  # `declare` asks no machine
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_runs_it_again(shout: Shout, change: str) -> None:
    shout.run()
    assert shout.run(**CHANGES[change][0]).ran
    assert shout.runs == 2


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_named(shout: Shout, change: str) -> None:
    record = shout.run()
    changes, words = CHANGES[change]
    found = [str(difference) for difference in differences(record, declare(replace(shout.stage, **changes)))]
    assert found == ([] if words is None else [words])
    assert shout.runs == 1


def test_another_machine_is_a_difference_between_records(shout: Shout) -> None:
    here, there = (shout.run(machine=lambda gpu=gpu: {"gpu": gpu}) for gpu in ("H100", "H200"))
    assert there.ran
    assert differences(here, there) == [Difference("machine")]
    assert str(Difference("machine")) == "machine"


def test_a_changed_input_runs_it_again(shout: Shout) -> None:
    shout.run()
    shout.input.write_text("bye")
    record = shout.run()
    assert record.ran
    assert record.facts == {"letters": 3}
    assert (shout.output / "sub" / "loud").read_text() == "BYE"


def test_a_new_tool_version_runs_it_again(shout: Shout, monkeypatch: pytest.MonkeyPatch) -> None:
    shout.run()
    monkeypatch.setattr(records, "version", lambda name: "999")
    assert shout.run().ran


@pytest.mark.parametrize(
    ("file", "ran"), [("core/deep/precision.py", True), ("core/new.py", True), ("core/errors.py", False), ("tools/cli.py", False)]
)
def test_a_change_in_its_own_code_runs_it_again(shout: Shout, package: Path, file: str, ran: bool) -> None:
    shout.run()
    (package / file).write_text("changed")
    assert shout.run().ran is ran


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_made_again(shout: Shout, damage: str) -> None:
    shout.run()
    tamper(shout.output, damage)
    assert shout.run().ran
    assert read_record(shout.output).wrote.keys() == {"sub/loud"}


def test_a_failed_stage_leaves_the_earlier_artifacts(shout: Shout) -> None:
    record = shout.run()
    shout.input.write_text("other")

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shout.run(body=fail)
    assert read_record(shout.output) == as_stored(record)
    assert {p.name for p in shout.output.parent.iterdir()} == {"input", "output"}


def test_a_missing_input_is_named(shout: Shout) -> None:
    shout.input.unlink()
    with pytest.raises(ArtifactError, match="not found") as caught:
        shout.run()
    assert caught.value.where == str(shout.input)
    assert not shout.output.exists()


def refuse(error: Exception) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it


def test_what_a_stage_needs_runs_before_it_and_only_when_it_must(shout: Shout, tmp_path: Path) -> None:
    needed = Shout(tmp_path)
    needed.stage = replace(needed.stage, name="needed", folder=tmp_path / "needed")
    changes: dict[str, Any] = {"needs": (needed.stage,), "inputs": lambda: {"loud": tmp_path / "needed" / "sub" / "loud"}}
    assert shout.run(**changes).ran
    assert not shout.run(**changes).ran
    assert (shout.runs, needed.runs) == (1, 1)


@pytest.mark.parametrize("refusal", [{"check": refuse(ArtifactError("not of this recipe"))}, {"machine": refuse(GpuError("no GPU"))}])
def test_a_refusal_comes_before_any_work_and_even_where_nothing_is_to_do(shout: Shout, tmp_path: Path, refusal: dict[str, Any]) -> None:
    shout.run()
    needed = Shout(tmp_path)
    with pytest.raises((ArtifactError, GpuError), match=r"not of this recipe|no GPU"):
        shout.run(needs=(replace(needed.stage, folder=tmp_path / "needed"),), **refusal)
    assert (shout.runs, needed.runs) == (1, 0)


@pytest.mark.parametrize("place", ["its own", "that of a stage it needs"])
def test_a_folder_of_somebody_else_is_refused_and_stays(shout: Shout, tmp_path: Path, place: str) -> None:
    needed = Shout(tmp_path)
    needed.stage = replace(needed.stage, name="needed", folder=tmp_path / "needed")
    taken = shout.output if place == "its own" else tmp_path / "needed"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="would replace a folder that holds other files"):
        shout.run(needs=(needed.stage,))
    assert (shout.runs, needed.runs) == (0, 0)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"input", taken.name, f"{taken.name}/notes.txt"}


def test_the_result_of_another_stage_is_refused(shout: Shout) -> None:
    shout.run()
    with pytest.raises(ArtifactError, match="holds the result of the stage 'shout'"):
        shout.run(name="whisper")
    assert shout.runs == 1


def test_what_follows_a_stage_gets_its_record_whether_or_not_it_ran(shout: Shout) -> None:
    seen: list[bool] = []
    for _ in range(2):
        shout.run(after=lambda record: seen.append(record.ran))
    assert seen == [True, False]
