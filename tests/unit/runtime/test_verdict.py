"""A verdict is found by its plan's hash wherever both lie, says why it does not count, and is refused where it was edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.records import read_record
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Stage, run_stage
from onerec_trt.runtime.plan_record import record_path
from onerec_trt.runtime.verdict import GateResult, Verdict, inspect_with_verdict, verdict_path, write_verdict

from .plan_files import GOOD, prove, write_plan

BAD = GateResult(name="scoring KL", value=None, threshold=1.1, comparison="<=", passed=False)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path)


def test_a_plan_without_a_verdict_is_not_validated(plan: Path) -> None:
    record = inspect_with_verdict(plan)
    assert not record.validated
    assert "onerec-trt validate --engine tensorrt" in record.reason


def test_a_pass_is_a_pass_and_leaves_the_record_alone(plan: Path) -> None:
    before = record_path(plan).read_bytes()
    prove(plan)
    record = inspect_with_verdict(plan)
    assert (record.validated, record.reason) == (True, "")
    assert record_path(plan).read_bytes() == before
    verdict = Verdict.model_validate(json.loads(verdict_path(plan).read_text()))
    assert (verdict.plan_sha256, verdict.record_sha256) == (sha256(plan), sha256(record_path(plan)))


def test_it_travels_under_any_name(plan: Path, tmp_path: Path) -> None:
    prove(plan)
    there = tmp_path / "model_repository" / "1"
    there.mkdir(parents=True)
    for source, name in ((plan, "model.plan"), (record_path(plan), "model.json"), (verdict_path(plan), "x.verdict.json")):
        shutil.copy(source, there / name)
    assert inspect_with_verdict(there / "model.plan").validated


@pytest.mark.parametrize(
    ("gates", "seen", "reason"),
    [
        ((GOOD, BAD), (0, 1), "it failed 1 of 2 gates: scoring KL"),
        ((GOOD,), (1,), "no request of its validation took its profile 0"),
        ((GOOD,), (), "no request of its validation took its profile 0 or 1"),
    ],
)
def test_what_did_not_pass_says_why(plan: Path, gates: tuple[GateResult, ...], seen: tuple[int, ...], reason: str) -> None:
    prove(plan, *gates, seen=seen)
    record = inspect_with_verdict(plan)
    assert (record.validated, record.reason) == (False, reason)


def test_no_gate_proves_nothing(plan: Path) -> None:
    write_verdict(plan, (), (0, 1), {})
    assert inspect_with_verdict(plan).reason == "its validation ran no gate"


def test_a_verdict_on_another_plan_says_nothing(plan: Path, tmp_path: Path) -> None:
    prove(plan)
    write_plan(tmp_path, b"rebuilt")  # under the same name
    assert not inspect_with_verdict(plan).validated
    assert "the gates have not run on it yet" in inspect_with_verdict(plan).reason


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"validated": True, "reason": ""}])
def test_a_record_changed_after_its_validation_is_refused(plan: Path, change: dict[str, Any]) -> None:
    prove(plan, GOOD, BAD)
    write_json(record_path(plan), {**json.loads(record_path(plan).read_text()), **change})
    with pytest.raises(ArtifactError, match="changed after its validation") as caught:
        inspect_with_verdict(plan)
    assert caught.value.where == str(record_path(plan))


def test_validated_typed_into_a_record_proves_nothing(plan: Path) -> None:
    write_json(record_path(plan), {**json.loads(record_path(plan).read_text()), "validated": True, "reason": ""})
    assert not inspect_with_verdict(plan).validated


def test_a_stale_plan_takes_no_verdict_from_the_one_in_its_place(plan: Path, tmp_path: Path) -> None:
    """An earlier plan with its own record is put back under the name of the plan that passed."""
    earlier = {path.name: path.read_bytes() for path in (plan, record_path(plan))}
    prove(write_plan(tmp_path, b"rebuilt"))
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    assert not inspect_with_verdict(plan).validated


def test_two_verdicts_must_agree(plan: Path) -> None:
    prove(plan, GOOD, BAD)
    shutil.copy(verdict_path(plan), plan.with_name("earlier.verdict.json"))
    prove(plan)
    assert not inspect_with_verdict(plan).validated


def _pass_the_gate(values: dict[str, Any]) -> None:
    values["gates"][1]["passed"] = True


def _see_more(values: dict[str, Any]) -> None:
    values["profiles_seen"].append(7)


def _add(values: dict[str, Any]) -> None:
    values["signed"] = True


def _lose(verdict: dict[str, Any]) -> None:
    verdict["gates"][0]["value"] = float("nan")


def _forget(values: dict[str, Any]) -> None:
    del values["gates"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_pass_the_gate, "was edited"),
        (_see_more, "was edited"),
        (_add, "malformed: signed"),
        (_forget, "malformed: gates"),
        (_lose, "malformed: gates"),
    ],
)
def test_an_edited_verdict_is_refused(plan: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    prove(plan, GOOD, BAD)
    values = json.loads(verdict_path(plan).read_text())
    edit(values)
    verdict_path(plan).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=message) as caught:
        inspect_with_verdict(plan)
    assert caught.value.where.endswith(".verdict.json")


@pytest.mark.parametrize("text", ["", "half a verd", "[]"])
def test_a_file_that_is_no_verdict(plan: Path, text: str) -> None:
    plan.with_name("other.verdict.json").write_text(text)
    assert not inspect_with_verdict(plan).validated  # of whatever plan it was
    verdict_path(plan).write_text(text)
    with pytest.raises(ArtifactError, match="is no verdict"):
        inspect_with_verdict(plan)


def test_the_record_of_the_stage_that_built_the_plan_tolerates_verdicts_alone(tmp_path: Path) -> None:
    def body(folder: Path) -> dict[str, Any]:
        write_plan(folder)
        return {}

    folder = tmp_path / "plans"
    stage = Stage(name="build", folder=folder, sources=Sources(()), tools=(), options={}, body=body)
    run_stage(stage)
    prove(folder / "sm90-b1-8-s2-32.plan")
    assert read_record(folder).stage == "build"
    assert not run_stage(stage).ran
    (folder / "notes.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not in the record"):
        read_record(folder)
