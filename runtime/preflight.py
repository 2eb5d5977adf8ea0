"""Preflight: can this plan be loaded on this machine? Checked before deserializing, which fails late and unclearly."""

from __future__ import annotations

from ..core.errors import ArtifactError
from .machine import Machine
from .plan_record import PlanRecord


def preflight(record: PlanRecord, machine: Machine) -> tuple[str, ...]:
    """Compare a plan's record with a machine.

    Returns:
        Warnings: another driver or GPU model than it was built with, or not validated yet.

    Raises:
        ArtifactError: Another TensorRT or another compute capability; the plan would not load.
    """
    if problems := _problems(record, machine):
        hint = f"build it for {machine.target} {machine.library_version} and compute capability {machine.compute_capability}"
        raise ArtifactError("the plan cannot run on this machine: " + "; ".join(problems), where=record.plan, hint=hint)
    return tuple(_warnings(record, machine))


def _problems(record: PlanRecord, machine: Machine) -> list[str]:
    built, here = f"{record.target} {record.library_version}", f"{machine.target} {machine.library_version}"
    problems = [] if built == here else [f"it was built by {built}, here is {here}"]
    if record.compute_capability != machine.compute_capability:
        problems.append(f"it was built for compute capability {record.compute_capability}, {machine.gpu} has {machine.compute_capability}")
    return problems


def _warnings(record: PlanRecord, machine: Machine) -> list[str]:
    warnings = []
    if record.driver is not None and record.driver != machine.driver:
        warnings.append(f"built with driver {record.driver}, here is {machine.driver}")
    if record.gpu is not None and record.gpu != machine.gpu:
        warnings.append(f"built on {record.gpu}, here is {machine.gpu}: it may not be the fastest plan for this GPU")
    if not record.validated:
        warnings.append(f"not validated: {record.reason}")
    return warnings
