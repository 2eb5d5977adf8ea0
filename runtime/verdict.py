"""Whether a plan was seen passing the gates: its hash stands in a validation that passed, kept beside the folder of plans, and all
its profiles have run there.

The plan's own record is never changed, since other records hold its hash.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ..core.artifacts import read_json
from ..core.records import RECORD_NAME, read_record
from .plan_record import PlanRecord, inspect_plan

PROOF_FOLDER = "validated-tensorrt"
VALIDATION_FILE = "validation.json"


class _GateResult(BaseModel):
    name: str
    passed: bool


class _Validation(BaseModel):
    """The part of a validation that says which plans passed; the whole of it is `validate.Validation`."""

    plans: dict[str, str] = {}
    unseen: dict[str, list[int]] = {}
    gates: list[_GateResult]


def inspect_proven(plan: Path, content: bytes | None = None) -> PlanRecord:
    """A plan's record, in which `validated` is true where this very plan passed every gate on its GPU.

    Args:
        content: What the caller has read of the plan and is about to use. Default: the file as it is.

    Raises:
        ArtifactError: The plan or the validation does not match its record.
    """
    record = inspect_plan(plan, content)
    folder = plan.absolute().parent.parent / PROOF_FOLDER
    if not (folder / RECORD_NAME).is_file():
        return record
    read_record(folder)
    validation = _Validation.model_validate(read_json(folder / VALIDATION_FILE))
    if validation.plans.get(plan.name) != record.sha256:
        return record
    if unseen := validation.unseen.get(plan.name):
        reason = f"no request of its validation took its profile {' or '.join(map(str, unseen))}"
        return record.model_copy(update={"reason": reason})
    failed = [gate.name for gate in validation.gates if not gate.passed]
    if not failed and validation.gates:
        return record.model_copy(update={"validated": True, "reason": ""})
    return record.model_copy(update={"reason": f"it failed {len(failed)} of {len(validation.gates)} gates: {', '.join(failed)}"})
