"""A plan's three files for tests, without a GPU: content of a few bytes, its record, and a verdict on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.plan_record import Fp8Gemms, PlanRecord, WeightBytes, record_path
from onerec_trt.runtime.verdict import GateResult, write_verdict

GOOD = GateResult(name="overlap@10", value=0.95, threshold=0.9, comparison=">=", passed=True)
SHAPES: Any = {"features": ((1, 2, 64), (4, 16, 64), (8, 32, 64)), "lengths": ((1, 3), (4, 3), (8, 3))}


def plan_record(**changes: Any) -> PlanRecord:
    """The record of a plan without profiles, built on an H200, with other values where they are given."""
    record = PlanRecord(
        plan="sm90.plan",
        sha256="0" * 64,
        bytes=1,
        target="tensorrt",
        library_version="10.6.0",
        compute_capability="9.0",
        driver="580.1",
        gpu="NVIDIA H200",
        io=serving_io(64, 8),
        profiles=(),
        builder_flags=(),
        fp8_gemms=Fp8Gemms(expected=0, found=0, missing=(), dequantized=0, how="counted"),
        weight_bytes=WeightBytes(graph={}, plan={}),
        build_seconds=1.0,
        peak_memory_bytes=1,
    )
    return record.model_copy(update=changes)


def write_plan(folder: Path, content: bytes = b"a plan", name: str = "sm90-b1-8-s2-32.plan", **changes: Any) -> Path:
    """A plan and its record, with two profiles unless others are given."""
    plan = folder / name
    plan.write_bytes(content)
    known: dict[str, Any] = {"plan": plan.name, "sha256": sha256(plan), "bytes": plan.stat().st_size, "profiles": (SHAPES, SHAPES)}
    write_json(record_path(plan), plan_record(**known | changes).model_dump(mode="json"))
    return plan


def prove(plan: Path, *gates: GateResult, seen: tuple[int, ...] = (0, 1)) -> None:
    write_verdict(plan, gates or (GOOD,), seen, {"tensorrt": "10.6.0"})
