"""Whether a plan was seen passing the gates: its verdict, a file beside the plan that names it by its hash.

Plan, record and verdict may be copied anywhere together, under any names. The verdict carries a digest of its own content: it guards
against accidents and careless edits, not against forgers, who can compute the digest too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.artifacts import json_object, sha256, write_json
from ..core.errors import ArtifactError, first_problem
from ..core.records import VERDICT_ENDING
from .plan_record import PlanRecord, inspect_plan, record_path

NOT_VALIDATED = "built without its GPU; nothing runs the gates on plans of TensorRT-RTX yet"
NOT_YET_VALIDATED = "built on its GPU, the gates have not run on it yet; run `onerec-trt validate --engine tensorrt`"

_AGAIN = "run `onerec-trt validate --engine tensorrt` again, or delete the file"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # which JSON does not know, and the digest goes by


class GateResult(_Part):
    """One gate: its value (null: not finite), its threshold, and whether it held."""

    name: str
    value: float | None
    threshold: float
    comparison: Literal["<=", ">="]
    passed: bool


class Verdict(_Part):
    """What the gates said of one plan.

    Args:
        plan_sha256: The plan that ran.
        record_sha256: Its record at that time.
        gates: All of them.
        profiles_seen: Numbers of the optimization profiles that took a batch.
        versions: Of the tools that measured, of the library and driver that ran the plan, and the GPU's name.
        digest: SHA-256 of all of the above.
    """

    plan_sha256: str
    record_sha256: str
    gates: tuple[GateResult, ...]
    profiles_seen: tuple[int, ...]
    versions: dict[str, str]
    digest: str


def verdict_path(plan: Path) -> Path:
    """Where the verdict on a plan is written."""
    return plan.with_name(plan.stem + VERDICT_ENDING)


def write_verdict(plan: Path, gates: tuple[GateResult, ...], profiles_seen: tuple[int, ...], versions: dict[str, str]) -> None:
    """Write the verdict on a plan beside it.

    Raises:
        ArtifactError: The plan does not match its record, or the folder cannot be written.
    """
    content = {
        "plan_sha256": inspect_plan(plan).sha256,
        "record_sha256": sha256(record_path(plan)),
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "profiles_seen": list(profiles_seen),
        "versions": versions,
    }
    write_json(verdict_path(plan), {**content, "digest": _digest(content)})


def inspect_with_verdict(plan: Path, content: bytes | None = None) -> PlanRecord:
    """A plan's record, in which `validated` is true where this very plan passed every gate on its GPU, and `reason` says why not.

    Every verdict in the plan's folder that names the plan counts; all must agree.

    Args:
        plan: Its path.
        content: What the caller has read of the plan and is about to use. Default: the file as it is.

    Raises:
        ArtifactError: The plan does not match its record, its record was changed after its validation, or a verdict on it was edited or is
            malformed.
    """
    record = inspect_plan(plan, content)
    verdicts = _verdicts_on(plan, record.sha256)
    if not verdicts:
        reason = NOT_YET_VALIDATED if record.target == "tensorrt" else NOT_VALIDATED
        return record.model_copy(update={"reason": reason})
    _require_record(plan, verdicts)
    objections = [said for verdict in verdicts if (said := _objection(verdict, record))]
    return record.model_copy(update={"validated": not objections, "reason": objections[0] if objections else ""})


def _require_record(plan: Path, verdicts: list[Verdict]) -> None:
    """Refuse a record that is not the one whose hash the verdicts hold."""
    path = record_path(plan)
    if any(verdict.record_sha256 != sha256(path) for verdict in verdicts):
        hint = "copy plan, record and verdict again, or run `onerec-trt validate --engine tensorrt` again"
        raise ArtifactError("the plan's record was changed after its validation", where=str(path), hint=hint)


def _objection(verdict: Verdict, record: PlanRecord) -> str:
    """Why a plan does not count as validated by a verdict; empty where it does."""
    if unseen := sorted(set(range(len(record.profiles))) - set(verdict.profiles_seen)):
        return f"no request of its validation took its profile {' or '.join(map(str, unseen))}"
    if not verdict.gates:
        return "its validation ran no gate"
    if failed := [gate.name for gate in verdict.gates if not gate.passed]:
        return f"it failed {len(failed)} of {len(verdict.gates)} gates: {', '.join(failed)}"
    return ""


def verdict_files(plan: Path, plan_sha256: str) -> list[Path]:
    """Files in the plan's folder that hold a verdict on it, under any name: what travels with it."""
    return [path for path, values in _beside(plan) if values is not None and values.get("plan_sha256") == plan_sha256]


def _verdicts_on(plan: Path, plan_sha256: str) -> list[Verdict]:
    """Verdicts in the plan's folder that name it, and the one of its name whatever it holds."""
    found = []
    for path, values in _beside(plan):
        if values is None and path.name == verdict_path(plan).name:
            raise ArtifactError("the plan's verdict is no verdict", where=str(path), hint=_AGAIN)
        if values is not None and values.get("plan_sha256") == plan_sha256:
            found.append(_checked(values, path))
    return found


def _beside(plan: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Verdicts in the plan's folder, on whatever plan; None where one is no JSON object."""
    for path in sorted(plan.absolute().parent.glob(f"*{VERDICT_ENDING}")):
        yield path, json_object(path)


def _checked(values: dict[str, Any], path: Path) -> Verdict:
    try:
        verdict = Verdict.model_validate(values)
    except ValidationError as error:
        problem = f"the plan's verdict is malformed: {first_problem(error)}"
        raise ArtifactError(problem, where=str(path), hint=_AGAIN) from None
    if verdict.digest != _digest({key: value for key, value in values.items() if key != "digest"}):
        raise ArtifactError("the plan's verdict was edited: it does not match its own digest", where=str(path), hint=_AGAIN)
    return verdict


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
